"""The method imports nothing else of the project."""

import ast
from pathlib import Path

import pytest

import sid_lsg.method

FILES = sorted(Path(sid_lsg.method.__file__).parent.glob("*.py"))
ALLOWED = {"torch", "numpy", "math", "abc", "collections", "enum", "functools", "typing"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_method_imports_only_torch_numpy_and_itself(path: Path) -> None:
    imported = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            imported += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            imported.append(str(node.module))
    foreign = [
        name
        for name in imported
        if not name.startswith("sid_lsg.method.") and name.split(".")[0] not in ALLOWED
    ]
    assert not foreign
