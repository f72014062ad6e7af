"""Load files of a folder or of the Hub."""

from pathlib import Path

import pytest

from sid_lsg.files.loading import read_json
from sid_lsg.files.sources import locate


def test_a_json_file_of_a_folder_is_read(tmp_path: Path) -> None:
    folder = locate(str(tmp_path))
    assert read_json(folder, "a/b.json") is None
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b.json").write_text('{"x": "ü"}', encoding="utf-8")
    assert read_json(folder, "a/b.json") == {"x": "ü"}
    for content in ("", "{", "[1]", "3"):
        (tmp_path / "a" / "b.json").write_text(content)
        with pytest.raises(ValueError, match="JSON|Expecting"):
            read_json(folder, "a/b.json")


def test_a_json_file_of_the_hub_is_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "found.json").write_text("{}")

    def fetch(name: str, file: str, revision: str | None) -> str:
        if file == "none.json":
            raise OSError("offline")
        assert (name, file, revision) == ("owner/name", "found.json", "v1")
        return str(tmp_path / file)

    monkeypatch.setattr("sid_lsg.files.loading.hf_hub_download", fetch)
    assert read_json(locate("owner/name"), "found.json", "v1") == {}
    assert read_json(locate("owner/name"), "none.json", "v1") is None
