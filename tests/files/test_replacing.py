"""Files are complete or absent; fingerprints distinguish texts."""

from pathlib import Path

import pytest

from sid_lsg.files.replacing import (
    check_outside,
    check_writable,
    remove_leftovers,
    replacing,
    text_hash,
    writing,
)
from sid_lsg.files.run_files import CONFIG
from sid_lsg.messages.errors import UsageError


def test_a_file_appears_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.txt"
    with replacing(path) as temporary:
        temporary.write_text("whole")
        assert not path.exists()
    assert path.read_text() == "whole"
    assert list(path.parent.iterdir()) == [path]


def test_an_error_keeps_the_earlier_file(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("earlier")

    def write() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert path.read_text() == "earlier"
    assert list(tmp_path.iterdir()) == [path]


def test_an_unwritable_file_gives_one_message(tmp_path: Path) -> None:
    check_writable(tmp_path / "new", "output")
    assert list((tmp_path / "new").iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"--output: cannot write to '.*inside' \(Not a directory"):
        check_writable(tmp_path / "file" / "inside", "output")
    with pytest.raises(UsageError, match="No space left"), writing(tmp_path, "output"):
        raise OSError(28, "No space left on device")


def test_fingerprints_depend_on_where_texts_end() -> None:
    assert text_hash(["ab", "c"]) != text_hash(["a", "bc"])
    assert text_hash(iter(["ab", "c"])) == text_hash(["ab", "c"])


def fill(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "a.txt").write_text(text)
    return folder


def test_folders_are_replaced_completely_or_not_at_all(tmp_path: Path) -> None:
    path = fill(tmp_path / "x", "old")

    def write() -> None:
        with replacing(path) as temporary:
            fill(temporary, "half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert (path / "a.txt").read_text() == "old"
    with replacing(path) as temporary:
        fill(temporary, "new")
    assert (path / "a.txt").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("replaced", [False, True])
def test_a_folder_moved_aside_by_a_killed_process_is_restored(
    tmp_path: Path, replaced: bool
) -> None:
    """The old folder is restored only if no new one is there."""
    fill(tmp_path / ".x.old.tmp", "old")
    fill(tmp_path / ".x.17.tmp", "half")
    if replaced:
        fill(tmp_path / "x", "new")
    remove_leftovers(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["x"]
    assert (tmp_path / "x/a.txt").read_text() == ("new" if replaced else "old")


def test_two_writers_with_one_process_id_do_not_share_a_name(tmp_path: Path) -> None:
    """For example two containers that share a cache."""
    path = tmp_path / "x"
    with replacing(path) as first, replacing(path) as second:
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_leftovers_of_other_runs_and_programs_are_kept(tmp_path: Path) -> None:
    other = tmp_path / "other"
    fill(other, "")
    (other / CONFIG).touch()
    fill(tmp_path / "mine", "")
    kept = [other / ".a.png.0a1b2c3d.tmp", tmp_path / ".editor.tmp", tmp_path / ".a.swp.tmp"]
    mine = [tmp_path / "mine/.a.png.0a1b2c3d.tmp", tmp_path / ".a.shards.tmp"]
    for path in (*kept, *mine):
        path.touch()
    remove_leftovers(tmp_path)
    assert set(tmp_path.rglob(".*")) == {*kept}
    remove_leftovers(other)
    assert not kept[0].exists()


def test_a_file_does_not_replace_a_folder(tmp_path: Path) -> None:
    """Without `over_folder`, one wrong option could delete a folder of results."""
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "kept.txt").touch()
    with pytest.raises(IsADirectoryError), replacing(tmp_path / "results") as temporary:
        temporary.write_text("{}")
    assert [path.name for path in tmp_path.rglob("*")] == ["results", "kept.txt"]
    with replacing(tmp_path / "results", over_folder=True) as temporary:
        temporary.write_text("{}")
    assert (tmp_path / "results").read_text() == "{}"


def test_inputs_must_be_outside_the_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "run").mkdir(parents=True)
    check_outside(Path("owner"), {"teacher": "owner/name"})  # a Hub id, not a folder here
    check_outside(Path("owner/run"), {"teacher": "owner"})
    for source in ("owner", "owner/run", str(tmp_path / "owner" / "run")):
        with pytest.raises(UsageError, match="--output: 'owner' .* but it contains --ckpt_path"):
            check_outside(Path("owner"), {"teacher": "none", "ckpt_path": source})
