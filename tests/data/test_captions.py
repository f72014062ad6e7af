"""Captions belong to the images that they name, and every wrong file is refused by its place."""

import json
import os
import unicodedata
import warnings
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sid_lsg.data.captions import read_captions
from sid_lsg.images.folder import list_images
from sid_lsg.messages.errors import UsageError
from tests.helpers.tables import KINDS, write_table

NAMES = ["a.JPG", "b.png", "c.png", "d.png", "more/e.webp"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Write five small images, one in a subfolder."""
    (tmp_path / "images" / "more").mkdir(parents=True)
    for name in NAMES:
        Image.new("RGB", (4, 4)).save(tmp_path / "images" / name)
    return tmp_path / "images"


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
        ("c.csv", "caption,text,caption\n1,2,3\n", None, "2 columns are named 'caption'"),
        ("c.jsonl", "{", None, "line 1: not JSON"),
        ("c.jsonl", "[1]", None, "line 1: expected a JSON object"),
        ("c.jsonl", '{"file_name": ["a.JPG"], "text": "x"}', None, "no caption for 5 of 5 images"),
        ("c.json", "{}", None, "c.json is not a .txt, .jsonl, .csv, .tsv or .parquet file"),
        ("c.csv", 'a,caption\n1,"x', None, "line 2: not CSV"),
        ("c.csv", "", None, "is empty"),
    ],
)
def test_captions_that_do_not_fit_are_rejected(
    folder: Path, name: str, content: str, column: str | None, said: str
) -> None:
    with pytest.raises(UsageError, match=rf"--captions: .*{name}.*{said}|{said}"):
        captions(folder, name, content, column)


def test_captions_of_missing_images_are_rejected(folder: Path) -> None:
    names = [*NAMES[:2], "f.png", *NAMES[2:], "g.png"]
    rows = [{"file_name": n, "text": "x"} for n in names]
    said = "holds 7 captions and .* 5 images. 2 captions .* line 3, whose 'file_name' is 'f.png'"
    with pytest.raises(UsageError, match=said):
        captions(folder, "metadata.jsonl", "\n".join(map(json.dumps, rows)))


def test_a_missing_captions_file_is_rejected(folder: Path) -> None:
    with pytest.raises(UsageError, match=r"--captions: cannot read 'none\.txt'"):
        read_captions("none.txt", None, list_images(folder, "images"), folder)


def test_captions_that_are_not_utf8_are_rejected(folder: Path) -> None:
    path = folder.parent / "latin.txt"
    path.write_bytes("Käse\n".encode("latin-1"))
    with pytest.raises(UsageError, match="not UTF-8"):
        read_captions(os.fspath(path), None, list_images(folder, "images"), folder)


# ---------------------------------------------------------------------- which file

SHUFFLED = [3, 0, 4, 2, 1]


def of_table(folder: Path, name: str, columns: list[str], rows: list[list[Any]]) -> list[str]:
    path = write_table(folder.parent / name, columns, rows)
    return read_captions(str(path), None, list_images(folder, "images"), folder)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "column", ["file_name", "filename", "image", "path", "Image Path", "img", "key", "uri", "id"]
)
def test_a_column_of_files_decides_whatever_its_name(folder: Path, kind: str, column: str) -> None:
    rows = [[7, NAMES[i], TEXTS[i]] for i in SHUFFLED]
    assert of_table(folder, f"c.{kind}", ["score", column, "caption"], rows) == TEXTS


@pytest.mark.parametrize(
    "names",
    [
        ["./a.JPG", "./b.png", "c.png", "d.png", "more//e.webp"],
        ["a.JPG", "b.png", "c.png", "d.png", "more\\e.webp"],
        ["images/a.JPG", "images/b.png", "images/c.png", "images/d.png", "images/more/e.webp"],
        ["a.JPG", "b.png", "c.png", "d.png", "e.webp"],
        ["a", "b", "c", "d", "more/e"],
        ["a", "b", "c", "d", "e"],
        [" a.JPG", "b.png ", "c.png", "d.png", "more/e.webp"],
    ],
)
def test_images_are_found_by_other_forms_of_their_paths(folder: Path, names: list[str]) -> None:
    rows = [[names[i], TEXTS[i]] for i in SHUFFLED]
    for column in ("image", "which"):
        assert of_table(folder, "c.jsonl", [column, "text"], rows) == TEXTS
    whole = [[str(folder / NAMES[i]), TEXTS[i]] for i in SHUFFLED]
    assert of_table(folder, "c.csv", ["source", "text"], whole) == TEXTS


def test_numbers_and_accents_name_files(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    composed, apart = (unicodedata.normalize(form, "é.png") for form in ("NFC", "NFD"))
    for name in ("000000000139.png", "000000000007.png", apart):
        Image.new("RGB", (4, 4)).save(folder / name)
    rows: list[list[Any]] = [["139", "one"], ["7", "two"], [composed, "three"]]
    found = of_table(folder, "c.csv", ["image_id", "caption"], rows)
    assert found == ["two", "one", "three"]
    (folder / apart).unlink()
    rows = [[139, "one"], [7, "two"]]
    for kind in KINDS:
        assert of_table(folder, f"c.{kind}", ["image_id", "caption"], rows) == ["two", "one"]


def test_hugging_face_images_in_a_table_name_files(folder: Path) -> None:
    rows = [[{"bytes": None, "path": NAMES[i]}, TEXTS[i]] for i in SHUFFLED]
    with_bytes = [[{"bytes": b"x", "path": NAMES[i]}, TEXTS[i]] for i in SHUFFLED]
    assert of_table(folder, "bytes.parquet", ["image", "text"], with_bytes) == TEXTS
    for kind in ("jsonl", "parquet"):
        assert of_table(folder, f"c.{kind}", ["image", "text"], rows) == TEXTS


def test_of_several_columns_the_one_that_fits_decides(folder: Path) -> None:
    rows = [[f"http://x/{i}.jpg", NAMES[i], TEXTS[i]] for i in SHUFFLED]
    assert of_table(folder, "c.csv", ["url", "local", "text"], rows) == TEXTS
    rows = [[NAMES[4 - i], NAMES[i], TEXTS[i]] for i in SHUFFLED]
    assert of_table(folder, "c.csv", ["depth", "file_name", "text"], rows) == TEXTS
    with pytest.raises(UsageError, match="--captions: the columns 'depth' and 'image' name diff"):
        of_table(folder, "c.csv", ["depth", "image", "text"], rows)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("column", "names", "said"),
    [
        ("image", ["v.png", "w.png", "x.png", "y.png", "z.png"], "no caption for 5 of 5"),
        ("image", ["a.JPG", "b.png", "c.png", "d.png", "x.png"], "for 1 of 5 .*'more/e.webp'"),
        ("image", ["train/a.JPG", "b.png", "c.png", "d.png", "e.webp"], "1 of 5 .*'a.JPG'"),
        ("filename", ["1", "2", "3", "4", "5"], "no caption for 5 of 5"),
        ("other", ["v.png", "w.png", "x.png", "y.png", "z.png"], "'other' names the files"),
        ("key", ["a", "b", "c", "x", "y"], "no caption for 2 of 5 .*'key' names the files"),
    ],
)
def test_a_table_that_names_other_files_is_never_paired_by_position(
    folder: Path, kind: str, column: str, names: list[str], said: str
) -> None:
    rows = [[name, text] for name, text in zip(names, TEXTS, strict=True)]
    with pytest.raises(UsageError, match=f"--captions: .*{said}"):
        of_table(folder, f"c.{kind}", [column, "text"], rows)


def test_a_column_of_lists_of_files_is_refused(folder: Path) -> None:
    rows = [[[name], text] for name, text in zip(NAMES, TEXTS, strict=True)]
    for column in ("image", "frames"):
        with pytest.raises(UsageError, match=f"no caption for 5 of 5 .*'{column}' names the files"):
            of_table(folder, "c.jsonl", [column, "text"], rows)


@pytest.mark.parametrize("between", ["\t", ",", ": ", " | ", " ", "#0\t", " - "])
def test_lines_that_begin_with_names_of_files_are_no_list(folder: Path, between: str) -> None:
    lines = [f"{NAMES[i]}{between}{TEXTS[i]}" for i in SHUFFLED]
    with pytest.raises(UsageError, match="--captions: the lines of .* begin with the names of im"):
        captions(folder, "c.txt", "\n".join(lines))


def test_an_ambiguous_name_is_refused(folder: Path) -> None:
    Image.new("RGB", (4, 4)).save(folder / "more" / "b.webp")
    Image.new("RGB", (4, 4)).save(folder / "more" / "f.webp")
    rows = [[name, name] for name in ["a", "b", "c", "d", "e", "f"]]
    with pytest.raises(UsageError, match=r"no caption for 2 of 7 .*'b\.png'"):
        of_table(folder, "c.csv", ["id", "text"], rows)


def numbered(folder: Path, names: list[str]) -> Path:
    folder.mkdir()
    for name in names:
        Image.new("RGB", (4, 4)).save(folder / name)
    return folder


def test_an_alphabetical_order_of_numbers_is_said(tmp_path: Path) -> None:
    folder = numbered(tmp_path / "n", [f"{n}.png" for n in range(11)])
    texts = [f"caption {n}" for n in range(11)]
    said = r"alphabetical order: 0.png, 1.png, 10.png, 2.png, .* 0.png, 1.png, 2.png, 3.png"
    for name, content in (
        ("c.txt", "\n".join(texts)),
        ("c.jsonl", "\n".join(json.dumps({"text": text}) for text in texts)),
    ):
        with pytest.warns(UserWarning, match=said):
            assert captions(folder, name, content) == texts
    padded = numbered(tmp_path / "p", [f"img_{n:02}.png" for n in range(11)] + ["cover.png"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        captions(padded, "c.txt", "\n".join([*texts, "cover"]))
        rows = [[f"{n}.png", f"caption {n}"] for n in range(11)]
        assert sorted(of_table(folder, "c.csv", ["image", "text"], rows)) == sorted(texts)


# ---------------------------------------------------------------------- what is a caption


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize(
    ("value", "said"),
    [
        (["one", "more"], "has 2 captions for 'a.JPG', such as 'more', and scores use one"),
        ([], "row|line 1: the caption is blank"),
        (7, "(line|row) 1: expected a string or a list of strings, found 7"),
        (0.5, "(line|row) 1: expected a string or a list of strings, found 0.5"),
        (True, "(line|row) 1: expected a string or a list of strings, found True"),
        ({"raw": "x"}, "(line|row) 1: expected a string or a list of strings, found {'raw'"),
        ([3, 4], r"(line|row) 1: expected a string or a list of strings, found \[3, 4"),
        (None, "(line|row) 1: the caption is blank"),
        (" ", "(line|row) 1: the caption is blank"),
    ],
)
def test_values_that_are_no_single_text_are_refused(
    folder: Path, kind: str, value: object, said: str
) -> None:
    values = [value] * 5 if kind == "parquet" else [value, *TEXTS[1:]]
    rows = [[name, text] for name, text in zip(NAMES, values, strict=True)]
    with pytest.raises(UsageError, match=f"--captions: .*{said}"):
        of_table(folder, f"c.{kind}", ["file_name", "text"], rows)


@pytest.mark.parametrize("kind", ["csv", "tsv"])
@pytest.mark.parametrize("value", ["['a cat', 'a kitty']", '["a", "b"]', "{'raw': 'a cat'}"])
def test_the_text_of_a_list_is_refused(folder: Path, kind: str, value: str) -> None:
    rows = [[name, text] for name, text in zip(NAMES, [*TEXTS[:4], value], strict=True)]
    with pytest.raises(UsageError, match="line 6: expected plain text, found the text of a list"):
        of_table(folder, f"c.{kind}", ["file_name", "text"], rows)
    rows[4][1] = "[a cat] on {a mat}"
    assert of_table(folder, f"c.{kind}", ["file_name", "text"], rows)[4] == rows[4][1]


def test_a_list_with_one_caption_is_that_caption(folder: Path) -> None:
    rows = [[name, [text, None, " "]] for name, text in zip(NAMES, TEXTS, strict=True)]
    assert of_table(folder, "c.jsonl", ["file_name", "text"], rows) == TEXTS
    rows += [["b.png", "again"]]
    with pytest.raises(UsageError, match="has 2 captions for 'b.png', such as 'again'"):
        of_table(folder, "c.jsonl", ["file_name", "text"], rows)
