"""Line finding against a plain reference; sequences that pickle and behave like lists."""

import pickle
import tempfile
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sid_lsg.data import sequences
from sid_lsg.data.sequences import Corpus, Lines, Packed, Without, _mapped
from sid_lsg.messages.errors import UsageError

# Line ends, kinds of whitespace (U+2003 and U+3000 take three bytes), a byte order mark, and
# characters that share first bytes with whitespace.
ALPHABET = ["\n", "\r\n", "\r", " ", "\t", "\x0b", "\x85", "\u2003", "\u3000", "\u2028", "\ufeff"]
ALPHABET += ["a", "b c", "é", "«", "“", "あ", "猫", "🙂"]


def reference(text: str) -> tuple[list[str], int]:
    """Return the prompts of a text and the number of its blank lines, with plain Python."""
    lines = text.removeprefix("\ufeff").split("\n")
    if not lines[-1]:
        lines.pop()  # a final newline ends a line and starts none
    prompts = [line.strip() for line in lines if line.strip()]
    return prompts, len(lines) - len(prompts)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    text=st.lists(st.sampled_from(ALPHABET), max_size=24).map("".join),
    chunk=st.integers(1, 9),
    every=st.sampled_from([1, 2, 3, 64]),
)
def test_lines_equal_the_reference_for_any_chunks(
    tmp_path: Path, text: str, chunk: int, every: int
) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes(text.encode())
    prompts, blank = reference(text)
    with patch.object(sequences, "_EVERY", every):
        lines = Lines(path, chunk_bytes=chunk)
        assert lines[:] == list(lines) == prompts
    assert lines.blank == blank


def test_many_lines_over_many_chunks(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    prompts = [f"prompt number {n}" + "x" * (n % 97) for n in range(300_000)]
    path.write_text(
        "".join(f"{text}\n" if n % 7 else f"{text}\n\n" for n, text in enumerate(prompts))
    )
    lines = Lines(path, chunk_bytes=1 << 16)
    assert list(lines) == prompts
    assert lines[::1009] == prompts[::1009]
    assert lines.blank == len(prompts[::7])


@pytest.mark.parametrize("chunk", [1, 4, 1 << 20])
def test_invalid_utf8_names_the_line_and_the_byte(tmp_path: Path, chunk: int) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes("good\nñ\n".encode() + b"caf\xe9 au lait\nlast")
    with pytest.raises(UsageError, match=r"prompts.txt, line 3: byte 11 of the file, 0xe9"):
        Lines(path, chunk_bytes=chunk)


def test_a_truncated_character_at_the_end_is_invalid(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes("fine\nñ".encode()[:-1])
    with pytest.raises(UsageError, match="line 2: byte 5"):
        Lines(path, chunk_bytes=2)


def test_a_file_that_changed_since_indexing_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("one\ntwo\n")
    lines = Lines(path)
    assert pickle.loads(pickle.dumps(lines))[:] == ["one", "two"]
    path.write_text("now three\n")
    _mapped.cache_clear()  # as in a worker that has not yet opened the file
    with pytest.raises(UsageError, match="prompts.txt has changed since the run started"):
        lines[0]


@given(st.lists(st.sampled_from(["a", "", " ", "b c", "\u2003"])))
@settings(max_examples=50, deadline=None)
def test_strings_know_their_rows(rows: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "lines.txt")
        path.write_text("".join(row + "\n" for row in rows), encoding="utf-8")
        for texts in (Lines(path), Packed(rows, "here")):
            expected = [number for number, row in enumerate(rows) if row.strip()]
            assert [texts.row(position) for position in range(len(texts))] == expected
            assert texts.num_rows == len(rows)


def test_packed_strips_skips_and_counts_blanks() -> None:
    packed = Packed([" a ", None, "", "\u3000", "two\nlines", "猫\r\n"], "table")
    assert packed[:] == ["a", "two\nlines", "猫"]
    assert packed.blank == 3


def test_packed_replaces_half_of_a_surrogate_pair() -> None:
    assert Packed(["cut \ud83d"], "table")[0] == "cut ?"


def test_packed_rejects_other_values() -> None:
    with pytest.raises(UsageError, match=r"table, row 2: expected a string, found 7"):
        Packed(["a", 7], "table")


def test_a_corpus_concatenates_its_parts_and_indexes_like_a_list() -> None:
    expected = list("abcdef")
    corpus = Corpus([Packed("ab", "x"), Packed(["c", None], "y"), Packed("def", "z")])
    assert list(corpus) == expected
    assert len(corpus) == 6
    assert corpus.blank == 1
    assert [corpus[n] for n in range(-6, 6)] == expected + expected
    assert corpus[1::2] == expected[1::2]
    for outside in (6, -7):
        with pytest.raises(IndexError):
            corpus[outside]
    assert pickle.loads(pickle.dumps(corpus))[:] == expected


@given(dropped=st.sets(st.integers(0, 9)))
def test_without_excludes_exactly_the_given_positions(dropped: set[int]) -> None:
    kept = Without([str(n) for n in range(10)], torch.tensor(sorted(dropped), dtype=torch.int64))
    assert kept[:] == [*kept] == [str(n) for n in range(10) if n not in dropped]
    assert len(kept) == 10 - len(dropped)
