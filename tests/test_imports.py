"""The layout of the package, and the modules that tests may import."""

import ast
from pathlib import Path

import pytest

from tests.helpers.paths import REPOSITORY, TESTS

FILES = [*TESTS.rglob("*.py")]


def imported(path: Path) -> list[str]:
    """Return the names of all modules that a file imports."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            found += [node.module or "", *(f"{node.module}.{name.name}" for name in node.names)]
        elif isinstance(node, ast.Import):
            found += [name.name for name in node.names]
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(TESTS)))
@pytest.mark.slow
def test_no_file_imports_a_test_module(path: Path) -> None:
    """Code that several test modules need belongs in tests/helpers or a conftest.py."""
    ours = [name for name in imported(path) if name.startswith("tests.")]
    assert [name for name in ours if not f"{name}.".startswith("tests.helpers.")] == []


def test_the_top_of_the_package_stays_small() -> None:
    """Wings are merged before a new one joins; `make lint` checks what they import."""
    top = {path for path in (REPOSITORY / "sid_lsg").iterdir() if path.name != "__pycache__"}
    assert len(top) <= 27
    wings = {path for path in top if path.is_dir()}
    assert {path.name for path in top - wings} == {
        *("__init__.py", "__main__.py", "cli.py", "optimizers_8bit.py"),
    }
    for wing in wings:
        docstring = ast.get_docstring(ast.parse((wing / "__init__.py").read_text())) or ""
        assert "May import" in docstring, wing
