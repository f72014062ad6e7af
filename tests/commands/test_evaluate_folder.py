"""`evaluate --images`: the scores of a folder of images, and its captions."""

import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sid_lsg.cli import main
from sid_lsg.files.replacing import text_hash
from tests.helpers.evaluations import Files, folder_line, refused, report
from tests.helpers.tables import write_table

pytestmark = pytest.mark.usefixtures("cache")


@pytest.mark.slow
def test_the_images_score_the_same_as_a_folder(files: Files, tmp_path: Path) -> None:
    main(files.line(output=tmp_path / "a"))
    images = tmp_path / "a" / "images"
    main(
        files.line(
            "--images", images, "--captions", images / "metadata.jsonl", output=tmp_path / "b"
        )[:1]
        + folder_line(files, images, captions=images / "metadata.jsonl", output=tmp_path / "b")
    )
    assert report(tmp_path / "b")["scores"] == report(tmp_path / "a")["scores"]
    assert report(tmp_path / "b")["prompts_sha256"] == report(tmp_path / "a")["prompts_sha256"]


@pytest.mark.parametrize(
    "option",
    [{"sampler": "ddim"}, {"num_steps": 4}, {"guidance": 0}, {"resolution": 64},
     {"dtype": "float16"}],
)  # fmt: skip
def test_sampling_options_are_rejected_for_a_folder(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str], option: dict[str, Any]
) -> None:
    line = folder_line(files, files.real, output=tmp_path / "out", **option)
    assert f"--{next(iter(option))} needs --model" in refused(capsys, "evaluate", *line)


def test_column_needs_captions(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = folder_line(files, files.real, output=tmp_path / "out", column="text")
    assert "--column needs --captions, which is not given" in refused(capsys, "evaluate", *line)


def test_a_wrong_number_of_captions_is_rejected(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = folder_line(files, files.real, captions=files.prompts, output=tmp_path / "out")
    message = refused(capsys, "evaluate", *line)
    assert "holds 3 captions" in message
    assert "9 images" in message


COLOURS = ["red", "lime", "blue", "black", "white", "gray", "navy", "pink"]


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Write a folder of plain images, whose captions are their colours."""
    (tmp_path / "pairs").mkdir()
    for number, colour in enumerate(COLOURS):
        Image.new("RGB", (64, 64), colour).save(tmp_path / "pairs" / f"{number}.png")
    return tmp_path / "pairs"


@pytest.mark.parametrize(
    ("kind", "column"),
    [("jsonl", "image"), ("csv", "filename"), ("tsv", "img_path"), ("parquet", "file_name")],
)
def test_captions_are_paired_by_any_column_of_files(
    files: Files, pairs: Path, tmp_path: Path, kind: str, column: str
) -> None:
    rows = [[f"{n}.png", colour] for n, colour in enumerate(COLOURS)]
    table = write_table(tmp_path / f"c.{kind}", [column, "text"], rows[::-1])
    options = {"captions": table, "reference": None, "num_images": 8, "output": tmp_path / "out"}
    main(["evaluate", *folder_line(files, pairs, **options)])
    found = report(tmp_path / "out")
    assert found["prompts_sha256"] == text_hash(COLOURS)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("c.csv", "image,text\n" + "x.png,a\n" * 8, "no caption for 8 of 8 images"),
        ("c.csv", "file_name,text\n0.png,a cat, asleep\n", "line 2: found 3 fields"),
        ("c.csv", "file_name,text\n0.png\n", "line 2: found 1 fields"),
        ("c.jsonl", '{"image": "0.png", "text": ["a", "b"]}\n', "no caption for 7 of 8 images"),
        ("c.jsonl", '{"image": "0.png", "text": 3}\n', "line 1: expected a string"),
        ("c.txt", "a\rb\rc\rd\re\rf\rg\rh", "line 1: a carriage return"),
        ("c.txt", "a\n" * 9, "holds 9 captions and .* 8 images"),
    ],
)
def test_captions_that_belong_to_no_image_end_the_command(
    files: Files,
    pairs: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    content: str,
    said: str,
) -> None:
    (tmp_path / name).write_text(content)
    options = {"captions": tmp_path / name, "reference": None, "num_images": 8}
    line = folder_line(files, pairs, output=tmp_path / "out", **options)
    message = refused(capsys, "evaluate", *line)
    assert re.search(f"error: --captions: .*{said}", message), message


def test_hidden_images_are_neither_scored_nor_a_reference(
    files: Files, pairs: Path, tmp_path: Path
) -> None:
    (pairs / ".ipynb_checkpoints").mkdir()
    Image.new("RGB", (64, 64)).save(pairs / ".ipynb_checkpoints" / "0-checkpoint.png")
    (pairs / "._0.png").write_bytes(b"\0\5\x16\7")
    (pairs / "movie.gif").touch()
    options = {"reference": pairs, "num_images": 8, "output": tmp_path / "out"}
    main(["evaluate", *folder_line(files, pairs, **options)])
    found = report(tmp_path / "out")
    assert (found["num_images"], found["reference"]["count"]) == (8, 8)
