"""Prompt files: formats, file patterns, and error messages."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sid_lsg.data.captions import read_captions
from sid_lsg.data.corpus import find_files, read_corpus
from sid_lsg.messages.errors import UsageError
from tests.helpers.tables import write_table

PROMPTS = ["a red shirt", 'a "quoted", comma', "ein Kätzchen", "two\nlines"]
Writer = Callable[[Path], Path]


def write_jsonl(folder: Path) -> Path:
    path = folder / "prompts.jsonl"
    rows = [json.dumps({"id": 1, "text": text}) for text in (*PROMPTS, "  ", None)]
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join([*rows, ""]).encode() + b"\n")
    return path


def write_csv(folder: Path) -> Path:
    path = folder / "prompts.csv"
    rows = ["id,text", *('1,"{}"'.format(text.replace('"', '""')) for text in PROMPTS)]
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join([*rows, "5,  ", "", "6,"]).encode())
    return path


def write_tsv(folder: Path) -> Path:
    return write_table(
        folder / "prompts.tsv",
        ["id", "text"],
        [[n, text] for n, text in enumerate([*PROMPTS, "", " ", None])],
    )


def write_parquet(folder: Path) -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = folder / "prompts.parquet"
    table = pyarrow.table({"id": [0] * 7, "text": [*PROMPTS, None, "", " "]})
    parquet.write_table(table, path, row_group_size=2)
    return path


@pytest.mark.parametrize("write", [write_jsonl, write_csv, write_tsv, write_parquet])
def test_tables_use_their_column_and_count_blank_rows(tmp_path: Path, write: Writer) -> None:
    corpus = read_corpus([write(tmp_path)], "text", "--data.prompts")
    assert list(corpus) == PROMPTS
    assert corpus.blank == 3


@pytest.mark.parametrize("write", [write_jsonl, write_csv, write_tsv, write_parquet])
@pytest.mark.parametrize("column", [None, "caption"])
def test_a_missing_column_lists_the_existing_ones(
    tmp_path: Path, write: Writer, column: str | None
) -> None:
    files = [write(tmp_path)]
    with pytest.raises(UsageError, match="--data.prompts: .*are: id, text. Give --data.column a"):
        read_corpus(files, column, "--data.prompts", "--data.column")
    with pytest.raises(UsageError, match="--prompts: .*are: id, text. Give --column a"):
        read_corpus(files, column, "--prompts")
    with pytest.raises(UsageError, match="--examples: .*are: id, text. Give a .txt file"):
        read_corpus(files, column, "--examples", column_option=None)


@pytest.mark.parametrize("write", [write_jsonl, write_parquet])
def test_a_column_without_text_is_rejected(tmp_path: Path, write: Writer) -> None:
    with pytest.raises(
        UsageError, match=r"column 'id', row 1: expected a string, found [01]\. Give --column"
    ):
        read_corpus([write(tmp_path)], "id", "--data.prompts")


def test_several_files_make_one_corpus(tmp_path: Path) -> None:
    lines = tmp_path / "more.TXT"
    lines.write_text("last\n\n")
    corpus = read_corpus([write_csv(tmp_path), lines], "text", "--data.prompts")
    assert list(corpus) == [*PROMPTS, "last"]
    assert corpus.blank == 4
    assert [corpus.row(position) for position in range(5)] == [0, 1, 2, 3, 7]  # three blank rows


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.txt", b"", "empty.txt holds no prompt .0 blank rows"),
        ("blank.txt", b" \n\r\n", "blank.txt holds no prompt .2 blank rows"),
        ("empty.csv", b"", "empty.csv holds no prompt"),
        ("header.csv", b"text\n", "header.csv holds no prompt"),
        ("empty.jsonl", b"\n", "empty.jsonl holds no prompt .1 blank"),
        ("prompts.docx", b"x", "not a .txt, .jsonl, .csv, .tsv or .parquet file"),
        ("latin.txt", b"caf\xe9", "latin.txt, line 1: byte 3 .* Save the file as UTF-8"),
        ("latin.csv", b"text\nok\ncaf\xe9", "latin.csv, line 3: byte 11 "),
        ("latin.jsonl", b'{"text": "caf\xe9"}', "latin.jsonl, line 1: byte 13 "),
        ("broken.jsonl", b'{"text": "a"}\n\n{"text": "b"', "broken.jsonl, line 3: not JSON"),
        ("list.jsonl", b"[1]", r"list.jsonl, line 1: expected a JSON object, found \[1\]"),
        ("late.jsonl", b'{"text": "a"}\n{"id": 1}', "late.jsonl, line 2: no column 'text'"),
        ("quote.csv", b'text\na\n"b\n', "quote.csv, line 3: not CSV"),
        ("broken.parquet", b"not parquet at all", "broken.parquet: not a readable parquet file"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=f"^--data.heldout: .*{message}"):
        read_corpus([tmp_path / name], "text", "--data.heldout")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("more.csv", "file,text\na,a cat, on a mat\n", "line 2: found 3 fields, .* header has 2"),
        ("fewer.csv", 'file,text\na,"two\nlines"\nb\n', "line 4: found 1 fields, .* has 2"),
        ("one.csv", "text\na cat\na dog, asleep\n", "line 3: found 2 fields, .* has 1. .*comma"),
        ("more.tsv", "file\ttext\na\tb\tc\n", "line 2: found 3 fields, .* contain a tab in quotes"),
        ("quotes.csv", 'file,text\na,"a cat" asleep\n', "line 2: not CSV"),
        ("semicolon.csv", "file;text\na;b\n", "line 1: the header is one field, .* not by ';'"),
        ("tab.csv", "file\ttext\na\tb\n", "line 1: the header is one field, .*by commas, not"),
        ("comma.tsv", "\nfile,text\na,b\n", "line 2: the header is one field, .*by tabs, not by"),
        ("open.csv", 'file,text\na,"a cat\nb,x\nc,y\n', "line 2: not CSV .unexpected end"),
    ],
)
def test_rows_that_do_not_fit_their_header_are_named(
    tmp_path: Path, name: str, content: str, message: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UsageError, match=f"--prompts: .*{name}, {message}"):
        read_corpus([tmp_path / name], "text", "--prompts")
    with pytest.raises(UsageError, match=f"--captions: .*{name}, {message}"):
        read_captions(str(tmp_path / name), "text", [tmp_path / "a.png"], tmp_path)


def test_csv_files_as_people_write_them(tmp_path: Path) -> None:
    """Fields over 128 KiB, blanks after commas, and rows of commas at the end."""
    path = tmp_path / "prompts.csv"
    rows = [
        "",
        ",,",
        "id, text ,page",
        f'1, "a cat, asleep", {"x" * 300_000}',
        "2,a dog,",
        ",,",
        ", ,,,",
    ]
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(rows).encode())
    corpus = read_corpus([path], "text", "--prompts")
    assert list(corpus) == ["a cat, asleep", "a dog"]
    assert corpus.blank == 2


def test_all_empty_files_are_named(tmp_path: Path) -> None:
    names = ["a.txt", "b.jsonl", "c.csv", "d.tsv", "full.txt"]
    contents = ["", "\n\n", "text\n", "", "a prompt"]
    for name, content in zip(names, contents, strict=True):
        (tmp_path / name).write_text(content)
    said = r"a.txt holds no prompt \(0 .*b.jsonl .*\(2 blank .*c.csv .*d.tsv .*\); remove them or"
    with pytest.raises(UsageError, match=f"^--data.prompts: .*{said}") as caught:
        read_corpus([tmp_path / name for name in names], "text", "--data.prompts")
    assert "full.txt" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("mac.txt", b"a cat\ra dog\r", 1),
        ("mixed.txt", b"a\nb\r\nc\rd\n", 3),
        ("mac.csv", b"text\ra cat\ra dog\r", 1),
        ("mac.tsv", b"id\ttext\n1\ta cat\r2\ta dog", 2),
        ("mac.jsonl", b'{"text": "a"}\r{"text": "b"}\r', 1),
    ],
)
def test_carriage_returns_that_end_lines_are_named(
    tmp_path: Path, name: str, content: bytes, line: int
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    said = f"{name}, line {line}: a carriage return .CR. .* LF line ends"
    with pytest.raises(UsageError, match=f"--prompts: .*{said}"):
        read_corpus([path], "text", "--prompts")
    with pytest.raises(UsageError, match=f"--captions: .*{said}"):
        read_captions(str(path), "text", [tmp_path / "a.png"], tmp_path)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_utf_16_is_refused(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("a cat\na dog\n".encode(encoding))
    with pytest.raises(UsageError, match=r"--prompts: .*a.txt, line 1: byte .* as UTF-8"):
        read_corpus([path], None, "--prompts")
    with pytest.raises(UsageError, match=r"--captions: .*a.txt, line 1: byte .* as UTF-8"):
        read_captions(str(path), None, [tmp_path / "a.png"], tmp_path)


def test_other_line_ends_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"one\r\ntwo\r\r\nthree\r")
    assert list(read_corpus([tmp_path / "a.txt"], None, "")) == ["one", "two", "three"]


def test_a_parquet_file_with_invalid_text_is_named(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    latin = pyarrow.array([b"ok", b"caf\xe9"]).view(pyarrow.string())  # as some writers do
    parquet.write_table(pyarrow.table({"text": latin}), tmp_path / "latin.parquet")
    with pytest.raises(UsageError, match=r"^--prompts: .*latin.parquet, column 'text': .*UTF-8"):
        read_corpus([tmp_path / "latin.parquet"], "text", "--prompts")


def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--data.prompts: cannot read .*gone.csv: No such file"):
        read_corpus([tmp_path / "gone.csv"], "text", "--data.prompts")


def test_missing_pyarrow_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    path = tmp_path / "prompts.parquet"
    path.touch()
    with pytest.raises(UsageError, match=r"needs pyarrow: pip install 'sid-lsg\[parquet\]'"):
        read_corpus([path], "text", "--data.prompts")


def test_paths_and_globs_give_files_in_a_fixed_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["b/2.txt", "b/10.txt", "a.txt", "odd[1].txt"]
    (tmp_path / "b" / "folder.txt").mkdir(parents=True)
    for name in names:
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    assert find_files("a.txt", "--data.prompts") == [Path("a.txt")]
    assert find_files("odd[1].txt", "--data.prompts") == [Path("odd[1].txt")]
    found = find_files(["b/*.txt", str(tmp_path / "a.txt")], "--data.prompts")
    assert found == [Path("b/10.txt"), Path("b/2.txt"), tmp_path / "a.txt"]
    assert len(find_files("**/*.txt", "--data.prompts")) == len(names)


def test_package_paths_are_inside_sid_lsg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (path,) = find_files("package:data/corpus.py", "--data.prompts")
    assert path.read_text() == Path(find_files.__code__.co_filename).read_text()
    with pytest.raises(UsageError, match="there is no file 'package:nothing.txt'"):
        find_files("package:nothing.txt", "--data.prompts")


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("gone.txt", "there is no file 'gone.txt'; check the path"),
        ("*.txt", r"no file matches '\*.txt'; check the path"),
        ("", "there is no file ''"),
        (".", r"\. is a directory; give files, as '\./\*\.txt'"),
    ],
)
def test_patterns_without_files_are_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=f"--data.prompts: {message}"):
        find_files([pattern], "--data.prompts")
