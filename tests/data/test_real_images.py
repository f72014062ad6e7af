"""Folders of real images: several captions per image, tables of every kind, and text files."""

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from PIL import Image

from sid_lsg.data.real_images import RealImages
from sid_lsg.messages.errors import UsageError
from tests.helpers.tables import KINDS, write_table


def folder_of(tmp_path: Path, count: int) -> Path:
    """Write images that differ in their brightness."""
    (tmp_path / "im").mkdir()
    for n in range(count):
        Image.new("L", (8, 8), 10 * n).save(tmp_path / "im" / f"{n}.png")
    return tmp_path / "im"


def drawn(folder: Path, first: int, count: int, seed: int = 0) -> list[tuple[int, str]]:
    """Return the number of the image and the caption of each draw."""
    batch = RealImages(str(folder)).batch(first, count, seed, (8, 8), None)
    numbers = (batch.images[:, 0, 0, 0] // 10).tolist()
    return list(zip(numbers, batch.captions, strict=True))


@pytest.mark.slow
def test_one_of_several_captions_is_drawn_by_the_seed(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, 3)
    texts = [["0 a"], ["1 a", "1 b", None, " "], ["2 a", "2 b", "2 c"]]
    rows = [json.dumps({"file_name": f"{n}.png", "text": text}) for n, text in enumerate(texts)]
    (folder / "metadata.jsonl").write_text("\n".join(rows))
    assert RealImages(str(folder)).captions[:] == ["0 a", "1 a", "1 b", "2 a", "2 b", "2 c"]
    found = drawn(folder, 0, 3 * 600)
    assert all(text.startswith(f"{n} ") for n, text in found)
    counts = Counter(text for _, text in found)
    assert counts["0 a"] == 600
    for text, expected in (("1 a", 300), ("1 b", 300), ("2 a", 200), ("2 b", 200), ("2 c", 200)):
        assert abs(counts[text] - expected) < 60  # more than four standard deviations
    assert drawn(folder, 0, 1800) == found != drawn(folder, 0, 1800, seed=1)
    assert drawn(folder, 700, 50) == found[700:750]  # whatever the ranks and restarts
    torch.manual_seed(5)
    assert drawn(folder, 0, 9) == found[:9]


@pytest.mark.parametrize("kind", KINDS)
def test_several_rows_per_image_are_several_captions(tmp_path: Path, kind: str) -> None:
    folder = folder_of(tmp_path, 2)
    rows = [[f"{n}.png", f"{n} {text}"] for text in "abc" for n in (1, 0)]
    write_table(folder / f"metadata.{kind}", ["image", "caption"], rows)
    found = drawn(folder, 0, 100)
    assert all(text.startswith(f"{n} ") for n, text in found)
    assert {text for _, text in found} == {f"{n} {text}" for n in range(2) for text in "abc"}


def test_two_tables_are_refused(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, 1)
    (folder / "metadata.csv").write_text("file_name,text\n0.png,a\n")
    (folder / "Metadata.JSONL").write_text('{"file_name": "0.png", "text": "b"}')
    with pytest.raises(UsageError, match="holds both Metadata.JSONL and metadata.csv. Keep one"):
        RealImages(str(folder))
    (folder / "metadata.csv").unlink()
    assert drawn(folder, 0, 1) == [(0, "b")]


def test_text_files_may_have_a_byte_order_mark_and_names_any_spaces(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, 2)
    (folder / "1.png").rename(folder / " 1 .png")
    (folder / "0.txt").write_bytes(b"\xef\xbb\xbfa cat\r\n")
    (folder / " 1 .txt").write_text("a dog")
    assert sorted(drawn(folder, 0, 2)) == [(0, "a cat"), (1, "a dog")]
    (folder / "0.txt").write_bytes(b"a\rb")
    with pytest.raises(UsageError, match=r"--data.real_images: .*0.txt, line 1: a carriage return"):
        RealImages(str(folder))


def test_hidden_images_need_no_caption(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, 2)
    (folder / ".ipynb_checkpoints").mkdir()
    (folder / ".ipynb_checkpoints" / "0-checkpoint.png").write_bytes(
        (folder / "0.png").read_bytes()
    )
    (folder / "._1.png").write_bytes(b"\0\5\x16\7")
    write_table(folder / "metadata.csv", ["file_name", "text"], [["0.png", "a"], ["1.png", "b"]])
    assert sorted(drawn(folder, 0, 2)) == [(0, "a"), (1, "b")]


def test_the_first_row_without_an_image_is_named(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, 2)
    rows = [[f"{n}.png", "a"] for n in (0, 7, 1, 8)]
    for kind, place in (("csv", "line 3"), ("jsonl", "line 2"), ("parquet", "row 2")):
        path = write_table(folder / f"metadata.{kind}", ["file_name", "text"], rows)
        said = f"--data.real_images: .*2 captions have no image; the first is in {place}, .*7.png"
        with pytest.raises(UsageError, match=said):
            RealImages(str(folder))
        path.unlink()
