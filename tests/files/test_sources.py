"""Names of files that the package holds."""

from pathlib import Path

import pytest

import sid_lsg
from sid_lsg.files.sources import PREFIX, resolve

PACKAGE = Path(sid_lsg.__file__).parent


@pytest.mark.parametrize(
    "path", ["runs/x", "/a/b.txt", "~/models/sd", "owner/name", "a:b", "my-package:demo", ""]
)
def test_other_paths_stay_as_they_are(path: str) -> None:
    assert resolve(path) == path


def test_a_package_path_is_inside_the_package_from_any_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert Path(resolve(f"{PREFIX}demo/recipe.py")) == PACKAGE / "demo" / "recipe.py"
    assert Path(resolve("package:resources.py")).read_text().startswith('"""Names of files')


def test_a_package_path_need_not_exist() -> None:
    assert Path(resolve("package:no/such")) == PACKAGE / "no" / "such"
