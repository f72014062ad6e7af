"""The command `prompts`: sources, filters, counts, files and refusals."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sid_lsg.cli import main
from sid_lsg.data.corpus import read_corpus
from sid_lsg.files.replacing import text_hash
from tests.helpers.tables import KINDS, write_table

CAPTIONS = [
    "a red cat on a mat", "A red cat, on a mat!", "two", None, " two\n dogs  on a log ",
    "ein Hund mit einem Ball", "a gun on a table", "a big bear stands in the river",
]  # fmt: skip
KEPT = ["a red cat on a mat", "two dogs on a log", "a big bear stands in the river"]
COUNTS = {
    "duplicate": 1, "too short": 1, "blank": 1, "other language": 1, "listed word": 1,
}  # fmt: skip


@pytest.fixture
def bad_words(tmp_path: Path) -> Path:
    path = tmp_path / "words.txt"
    path.write_text("Gun\n\nhand grenade\n")
    return path


def about(output: Path) -> dict[str, Any]:
    return json.loads(output.with_name(f"{output.name}.json").read_text())


def read(output: Path) -> list[str]:
    column = "prompt" if output.suffix == ".parquet" else None
    return [*read_corpus([output], column, "--data.prompts")]


def run(*line: Any) -> None:
    main(["prompts", "--progress", "false", *map(str, line)])


def as_file(folder: Path, kind: str) -> tuple[Any, ...]:
    """Write the captions as a table; return the options that name it."""
    path = folder / f"captions.{kind}"
    if kind == "txt":
        path.write_text("\n".join(" ".join((text or "").split()) for text in CAPTIONS))
        return ("--source", path)
    rows = [[number, "" if kind in ("csv", "tsv") and text is None else text]
            for number, text in enumerate(CAPTIONS)]  # fmt: skip
    write_table(path, ["id", "text"], rows)
    return ("--source", path, "--column", "text")


def as_dataset(folder: Path) -> tuple[Any, ...]:
    """Write a folder in a layout of the Hub, in two files."""
    (folder / "data").mkdir()
    for part, texts in enumerate((CAPTIONS[:5], CAPTIONS[5:])):
        rows = [[text, part] for text in texts]
        write_table(folder / "data" / f"train-0000{part}.parquet", ["text", "id"], rows)
    return ("--source", folder / "data", "--column", "text")


SOURCES: dict[str, Callable[[Path], tuple[Any, ...]]] = {
    **{kind: (lambda folder, kind=kind: as_file(folder, kind)) for kind in [*KINDS, "txt"]},
    "data set": as_dataset,
}


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("suffix", ["parquet", "txt"])
def test_captions_of_any_source_become_prompts(
    tmp_path: Path,
    bad_words: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    source: str,
    suffix: str,
) -> None:
    if source == "data set":
        pytest.importorskip("datasets")
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    output = tmp_path / "out" / f"prompts.{suffix}"
    run(*SOURCES[source](tmp_path), "--output", output, "--exclude_words", bad_words)
    assert read(output) == KEPT
    found = about(output)
    assert found["left_out"] == COUNTS
    assert (found["captions"], found["prompts"]) == (8, 3)
    assert found["prompts_sha256"] == text_hash(KEPT)
    assert "Kept 3 of 8 captions; left out: 1 duplicate, " in capsys.readouterr().out
    assert len([*output.parent.iterdir()]) == 2


def test_a_limit_counts_only_what_was_read(tmp_path: Path) -> None:
    output = tmp_path / "prompts.txt"
    run(*as_file(tmp_path, "jsonl"), "--output", output, "--limit", 2)
    assert read(output) == KEPT[:2]
    assert about(output)["captions"] == 5


def test_lists_of_captions_and_several_files_are_one_source(tmp_path: Path) -> None:
    for number, texts in enumerate(([["a dog in a box", "a box of dogs"]], [["a cat in a hat"]])):
        write_table(tmp_path / f"{number}.jsonl", ["text"], [*([text] for text in texts)])
    output = tmp_path / "prompts.txt"
    run("--source", tmp_path / "*.jsonl", "--column", "text", "--output", output)
    assert read(output) == ["a dog in a box", "a box of dogs", "a cat in a hat"]


@pytest.mark.parametrize("kind", ["coco", "csv", "txt"])
def test_texts_that_models_are_scored_on_are_left_out(tmp_path: Path, kind: str) -> None:
    scored = ["A red cat on a mat.", "There is a big bear that stands in the river today"]
    excluded = tmp_path / f"excluded.{'json' if kind == 'coco' else kind}"
    if kind == "coco":
        entries = [{"id": i, "image_id": i, "caption": text} for i, text in enumerate(scored)]
        excluded.write_text(json.dumps({"images": [], "annotations": entries}))
    elif kind == "csv":
        write_table(
            excluded, ["file_name", "caption"], [[f"{i}.jpg", t] for i, t in enumerate(scored)]
        )
    else:
        excluded.write_text("\n".join(scored))
    source = tmp_path / "source.txt"
    source.write_text("a red cat on a mat\na big bear that stands in the river, photo\na red cat\n")
    output = tmp_path / "prompts.txt"
    run("--source", source, "--output", output, "--exclude", excluded)
    assert read(output) == ["a red cat"]
    assert about(output)["left_out"] == {"excluded text": 2}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"source": "{tmp}/none.txt"}, "--source: there is no file"),
        ({"source": "none/none.parquet"}, "--source: there is no file"),
        ({"column": "caption"}, "--source: .*no column 'caption'.*columns are: id, text"),
        ({"column": "id"}, "--source: .*expected a string.*Give --column"),
        ({"column": None}, "--source: .*which column"),
        ({"split": "train"}, "--split is for data sets"),
        ({"limit": "0"}, "--limit must be at least 1"),
        ({"min_words": "9", "max_words": "8"}, "--max_words must be at least --min_words"),
        ({"min_words": "99"}, "--source: no caption is left. Kept 0 of 8.*7 too short"),
        ({"output": "{tmp}/prompts.csv"}, "--output must be a .parquet or .txt file"),
        ({"output": "{tmp}/kept.txt"}, "--output: .*kept.txt' exists.*--overwrite"),
        ({"output": "{tmp}/kept.txt/prompts.txt"}, "--output: cannot write to"),
        ({"exclude": "{tmp}/none.json"}, "--exclude: there is no file"),
        ({"exclude": "{tmp}/kept.txt.json"}, "--exclude: .*not JSON"),
        ({"exclude_column": "text"}, "--exclude_column needs --exclude"),
        ({"exclude_words": "{tmp}/none.txt"}, "--exclude_words: cannot read"),
        ({"language": "german"}, "--language"),
        ({"source": "{tmp}/folder"}, "--source: could not read the split 'train' of the data set"),
        ({"source": "owner/name"}, "--source: .*owner/name.*reach"),
    ],
)  # fmt: skip
def test_refusals_are_one_message_and_write_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: dict[str, str | None],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "kept.txt").write_text("mine")
    (tmp_path / "kept.txt.json").write_text("mine")
    source = as_file(tmp_path, "jsonl")[1]
    chosen = {"source": str(source), "column": "text", "output": "new/prompts.txt"} | options
    if chosen["source"] in ("owner/name", "{tmp}/folder"):
        pytest.importorskip("datasets")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    line = [
        part.replace("{tmp}", str(tmp_path))
        for name, value in chosen.items() if value is not None for part in (f"--{name}", value)
    ]  # fmt: skip
    with pytest.raises(SystemExit) as end:
        run(*line)
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert error.count("error: ") == 1
    assert "Traceback" not in error
    assert re.search(f"error: .*{said}", error), error
    assert not [*(tmp_path / "new").glob("*")]
    assert (tmp_path / "kept.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("missing", "options"),
    [("datasets", {"source": "owner/name"}), ("pyarrow", {"output": "prompts.parquet"})],
)
def test_missing_extras_are_named(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    missing: str,
    options: dict[str, str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, missing, None)
    source = str(as_file(tmp_path, "csv")[1])
    chosen = {"source": source, "column": "text", "output": "prompts.txt"} | options
    with pytest.raises(SystemExit) as end:
        run(*(part for name, value in chosen.items() for part in (f"--{name}", value)))
    assert end.value.code == 2
    extra = "parquet" if missing == "pyarrow" else missing
    assert f"pip install 'sid-lsg[{extra}]'" in capsys.readouterr().err


def test_an_earlier_file_is_replaced_on_request(tmp_path: Path) -> None:
    output = tmp_path / "prompts.txt"
    output.write_text("old")
    run(*as_file(tmp_path, "csv"), "--output", output, "--overwrite", "true", "--limit", 1)
    assert read(output) == KEPT[:1]
