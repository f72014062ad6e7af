"""Folders of images and caption files are read exactly, and bad files are named."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sid_lsg.data.captions import read_captions
from sid_lsg.images.folder import ImageReader, list_images, read_image
from sid_lsg.messages.errors import UsageError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Write five images of several modes and sizes, one in a subfolder, and a text file."""
    root = tmp_path / "images"
    (root / "more").mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)
    Image.fromarray(noise).save(root / "b.png")
    Image.fromarray(noise[:20]).save(root / "a.JPG", quality=95)
    Image.fromarray(noise[..., 0]).save(root / "c.png")  # grey
    Image.fromarray(noise).convert("P").save(root / "d.png")  # a palette
    Image.fromarray(noise).save(root / "more" / "e.webp", lossless=True)
    (root / "notes.txt").write_text("no image")
    return root


NAMES = ["a.JPG", "b.png", "c.png", "d.png", "more/e.webp"]


def test_images_are_listed_in_the_order_of_their_paths(folder: Path) -> None:
    found = list_images(str(folder), "images")
    assert [path.relative_to(folder).as_posix() for path in found] == NAMES


def test_sheets_written_by_commands_are_not_listed(folder: Path) -> None:
    for name in ("contact_sheet.png", "samples.png", "alignment.png"):
        (folder / name).write_bytes((folder / "b.png").read_bytes())
    assert (
        len(list_images(folder, "images")) == 8
    )  # without the identifying files they are ordinary images
    (folder / "images.json").write_text("{}")
    (folder / "report.json").write_text("{}")
    found = list_images(folder, "images")
    assert [path.relative_to(folder).as_posix() for path in found] == NAMES


def test_images_of_any_kind_are_read_as_rgb(folder: Path) -> None:
    for path in list_images(folder, "images"):
        found = read_image(path)
        expected = np.asarray(Image.open(path).convert("RGB"))
        assert found.dtype == torch.uint8
        np.testing.assert_array_equal(found.permute(1, 2, 0), expected)


def test_16_bit_grey_is_read_and_32_bit_grey_is_rejected(folder: Path) -> None:
    grey = np.arange(900, dtype=np.uint16).reshape(30, 30) * 72
    Image.fromarray(grey).save(folder / "f.png")
    assert read_image(folder / "f.png").float().mean() == pytest.approx(grey.mean() / 257, abs=0.1)
    Image.fromarray(grey.astype(np.float32)).save(folder / "f.tif")
    reader = ImageReader([folder / "f.tif"])
    assert list(reader.read([range(1)])) == []
    with pytest.raises(UsageError, match=r"f\.tif \(it has 32 bits per pixel"):
        reader.check("images")


@pytest.mark.parametrize("size", [1, 2, 5])
def test_images_are_prefetched_in_order(folder: Path, size: int) -> None:
    paths = list_images(folder, "images")
    chunks = [range(i, min(i + size, 5)) for i in range(0, 5, size)]
    reader = ImageReader(paths, workers=2)
    found = list(reader.read(chunks))
    assert [places for places, _ in found] == [list(chunk) for chunk in chunks]
    for places, images in found:
        for place, image in zip(places, images, strict=True):
            assert torch.equal(image, read_image(paths[place]))
    reader.check("images")


def test_unreadable_images_are_counted_and_named(folder: Path) -> None:
    """Truncated, empty, foreign and missing files do not stop the readable ones."""
    (folder / "b.png").write_bytes((folder / "b.png").read_bytes()[:200])
    (folder / "a.JPG").write_bytes((folder / "a.JPG").read_bytes()[:-300])
    (folder / "c.png").write_bytes(b"")
    (folder / "d.png").write_text("<html>404</html>")
    paths = [*list_images(folder, "images"), folder / "gone.png"]
    reader = ImageReader(paths)
    read = [
        place
        for places, _ in reader.read([range(0, 2), range(2, 4), range(4, 6)])
        for place in places
    ]
    assert read == [4]
    with pytest.raises(UsageError) as caught:
        reader.check("images")
    message = str(caught.value)
    assert message.startswith("--images: 5 of 6 images cannot be read: ")
    for name in ("a.JPG", "b.png", "c.png", "d.png", "gone.png"):
        assert str(folder / name) in message
    assert "truncated" in message
    assert "e.webp" not in message


def test_a_long_list_of_unreadable_images_is_shortened(tmp_path: Path) -> None:
    paths = [tmp_path / f"{i:02d}.png" for i in range(14)]
    reader = ImageReader(paths)
    assert list(reader.read([range(14)])) == []
    with pytest.raises(UsageError, match=r"14 of 14 .*09\.png.* and 4 more\. Replace"):
        reader.check("images")


def test_folders_without_images_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--reference: there is no folder .*none"):
        list_images(tmp_path / "none", "reference")
    (tmp_path / "a.txt").touch()
    with pytest.raises(UsageError, match=r"--images: .* contains no image \(\.bmp"):
        list_images(tmp_path, "images")


# ---------------------------------------------------------------------- captions

TEXTS = ["one", "two, with a comma", "drei Käse", "four", "five"]


def captions(folder: Path, name: str, content: str, column: str | None = None) -> list[str]:
    path = folder.parent / name
    path.write_text(content, encoding="utf-8")
    return read_captions(str(path), column, list_images(folder, "images"), folder)


def test_lines_are_captions_in_the_order_of_the_files(folder: Path) -> None:
    assert captions(folder, "c.txt", "\n".join(TEXTS)) == TEXTS
    assert captions(folder, "c.txt", "".join(f"  {text}\r\n" for text in TEXTS)) == TEXTS


@pytest.mark.parametrize("column", ["caption", "text", "prompt"])
def test_tables_are_read_by_their_usual_columns(folder: Path, column: str) -> None:
    rows = [{"id": i, column: text} for i, text in enumerate(TEXTS)]
    lines = "\n".join(json.dumps(row) for row in rows)
    assert captions(folder, "c.jsonl", lines + "\n\n") == TEXTS
    table = f"id,{column}\n" + "".join(f'{i},"{text}"\n' for i, text in enumerate(TEXTS))
    assert captions(folder, "c.csv", table) == TEXTS


def test_a_column_can_be_named(folder: Path) -> None:
    rows = [{"caption": "no", "long": text} for text in TEXTS]
    assert captions(folder, "c.jsonl", "\n".join(map(json.dumps, rows)), "long") == TEXTS


def test_an_unpaired_surrogate_becomes_a_question_mark(folder: Path) -> None:
    lines = r'{"text": "\ud83d one"}' + '\n{"text": "two"}' * 4
    assert captions(folder, "c.jsonl", lines) == ["? one", *["two"] * 4]


def test_captions_are_matched_by_file_name(folder: Path) -> None:
    rows = [{"file_name": n, "text": t} for n, t in zip(NAMES, TEXTS, strict=True)]
    shuffled = "\n".join(json.dumps(rows[i]) for i in (3, 0, 4, 2, 1))
    assert captions(folder, "metadata.jsonl", shuffled) == TEXTS


@pytest.mark.parametrize(
    ("name", "content", "column", "said"),
    [
        ("c.txt", "one\ntwo\n", None, "holds 2 captions and .* 5 images"),
        ("c.txt", "1\n2\n3\n4\n5\n6\n", None, "holds 6 captions and .* 5 images"),
        ("c.txt", "1\n2\n\n4\n5\n", None, "caption 3 of .* is blank"),
        ("c.csv", "file_name,caption\nb.png,x\n", None, r"no caption for 4 of 5 images.*'a\.JPG'"),
        ("c.csv", "id,words\n1,x\n", None, "columns id, words.*--column"),
        ("c.csv", "id,caption\n1,x\n", "text", "columns id, caption.*--column"),
        ("c.csv", "id,words\n1,x,y\n", None, "columns id, words.*--column"),
        ("c.jsonl", "{", None, "cannot read"),
        ("c.jsonl", "[1]", None, "not all JSON objects"),
        ("c.jsonl", '{"file_name": ["a.JPG"], "text": "x"}', None, "no caption for 5 of 5 images"),
        ("c.json", "{}", None, "it is not a .txt, .jsonl or .csv file"),
        ("c.csv", 'a,caption\n1,"x', None, "cannot read"),
    ],
)
def test_captions_that_do_not_fit_are_rejected(
    folder: Path, name: str, content: str, column: str | None, said: str
) -> None:
    with pytest.raises(UsageError, match=rf"--captions: .*{name}.*{said}|{said}"):
        captions(folder, name, content, column)


def test_captions_of_missing_images_are_rejected(folder: Path) -> None:
    rows = [{"file_name": n, "text": "x"} for n in [*NAMES, "f.png"]]
    with pytest.raises(UsageError, match="holds 6 captions and .* 5 images"):
        captions(folder, "metadata.jsonl", "\n".join(map(json.dumps, rows)))


def test_a_missing_captions_file_is_rejected(folder: Path) -> None:
    with pytest.raises(UsageError, match=r"--captions: cannot read 'none\.txt'"):
        read_captions("none.txt", None, list_images(folder, "images"), folder)


def test_captions_that_are_not_utf8_are_rejected(folder: Path) -> None:
    path = folder.parent / "latin.txt"
    path.write_bytes("Käse\n".encode("latin-1"))
    with pytest.raises(UsageError, match="not UTF-8"):
        read_captions(os.fspath(path), None, list_images(folder, "images"), folder)
