"""Resolve the names of models and files."""

from pathlib import Path

import pytest

import sid_lsg
from sid_lsg.files.sources import PREFIX, locate, located, resolve
from sid_lsg.messages.errors import UsageError

PACKAGE = Path(sid_lsg.__file__).parent


@pytest.mark.parametrize("path", ["runs/x", "/a/b.txt", "owner/name", "a:b", "my-package:demo", ""])
def test_other_paths_are_unchanged(path: str) -> None:
    assert resolve(path) == path


def test_a_package_path_is_inside_the_package_from_any_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert Path(resolve(f"{PREFIX}demo/recipe.py")) == PACKAGE / "demo" / "recipe.py"
    assert Path(resolve("package:files/sources.py")).read_text().startswith('"""Resolve names')


def test_a_package_path_need_not_exist() -> None:
    assert Path(resolve("package:no/such")) == PACKAGE / "no" / "such"


def test_the_configs_belong_to_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a checkout they lie beside it, in a wheel inside it; a wheel's are its own."""
    monkeypatch.chdir(tmp_path)
    assert resolve("package:configs/demo.yaml") == str(PACKAGE.parent / "configs/demo.yaml")
    assert resolve("package:configsx/demo.yaml") == str(PACKAGE / "configsx/demo.yaml")
    monkeypatch.setattr("sid_lsg.files.sources.files", lambda _: tmp_path / "sid_lsg")
    assert resolve("package:configs/a.yaml") == str(tmp_path / "configs/a.yaml")
    (tmp_path / "sid_lsg" / "configs").mkdir(parents=True)
    assert resolve("package:configs/a.yaml") == str(tmp_path / "sid_lsg/configs/a.yaml")


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "sd").mkdir()
    assert resolve("~/sd") == str(tmp_path / "sd")
    assert locate("~/sd").kind == "folder"
    assert locate("~/sd").location == str(tmp_path / "sd")
    assert locate("~nobody-has-this-name/sd").kind == "missing"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("owner/name", "hub"),
        ("owner/na.me-1_2", "hub"),
        ("models/sd", "folder"),  # a folder takes precedence over a Hub id
        ("./models/sd", "folder"),
        ("models/a.ckpt", "file"),
        ("models/other", "hub"),
        ("./models", "folder"),
        ("./name", "missing"),
        ("../owner/name", "missing"),
        ("/owner/name", "missing"),
        ("~/name", "missing"),
        ("owner/name/part", "missing"),
        ("name", "missing"),
        ("package:demo/fashion", "folder"),
        ("package:demo/none", "missing"),
        ("package:none", "missing"),
        ("architecture:sd15", "architecture"),
    ],
)
def test_each_name_has_one_kind(
    name: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "models" / "sd").mkdir(parents=True)
    (tmp_path / "models" / "a.ckpt").touch()
    source = locate(name)
    assert (source.kind, source.name) == (kind, name)
    if kind == "hub":
        assert source.location == name
    elif kind != "architecture":
        assert source.path == Path(resolve(name))
        # The libraries must not take a path for a Hub id.
        assert source.location.startswith(("models", str(tmp_path), "/"))
    if kind == "missing":
        with pytest.raises(UsageError, match=r"--teacher: there is no folder .*\. Give another\."):
            located(name, "teacher", "Give another.")
    else:
        assert located(name, "teacher", "Give another.") == source
