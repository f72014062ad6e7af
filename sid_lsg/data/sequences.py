"""Sequences of strings that cost little to open and to share with the workers of a loader.

They hold a few large arrays and no Python object per string: forked workers share those pages with
their parent (objects would be copied as soon as they are counted), spawned workers receive them as
shared memory. Arrow arrays of strings do neither: five million lines take 413 MiB in memory, and
again in every spawned worker, compared with 40 MiB of offsets that the workers share.
"""

import codecs
import functools
import mmap
from abc import abstractmethod
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, chain
from pathlib import Path
from typing import overload

import numpy as np
import torch
from torch import Tensor

from sid_lsg.messages.errors import UsageError

Version = tuple[int, int]  # a file's size and its time of modification

# Which bytes can begin a whitespace character (all are in the first plane of Unicode): a line that
# begins otherwise is not blank, which spares nearly every line a look by Python.
_BEGINS_WHITESPACE = np.zeros(256, dtype=bool)
_BEGINS_WHITESPACE[list({c.encode()[0] for c in map(chr, range(0x10000)) if c.isspace()})] = True


class Texts(Sequence[str]):
    """Strings by position; a subclass gives `__len__` and `_text`."""

    @abstractmethod
    def _text(self, position: int) -> str:
        """Return the string at a position in 0..len-1."""

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        """Return one string, or a list of them, by the rules of a list."""
        positions = range(len(self))[index]  # resolves negative indices, raises IndexError
        if isinstance(positions, int):
            return self._text(positions)
        return [self._text(position) for position in positions]


class Rows(Texts):
    """The rows of a file that are not blank.

    Attributes:
        blank: How many rows are left out.
    """

    def _leave_out(self, blank: Sequence[int]) -> None:
        """Remember which rows are blank, in order."""
        self.blank = len(blank)
        self._kept_before = [row - index for index, row in enumerate(blank)]

    @property
    def num_rows(self) -> int:
        """How many rows there are, blank ones included."""
        return len(self) + self.blank

    def row(self, position: int) -> int:
        """Return the row, from 0 and blank ones included, in which a string stands."""
        return position + bisect_right(self._kept_before, position)


class Lines(Rows):
    r"""The lines of a UTF-8 text file that are not blank, stripped, read on demand.

    Only \n ends a line; the \r of an \r\n is stripped with the other whitespace.

    Args:
        path: The file.
        chunk_bytes: How much of the file is looked at in one go; no effect on the result.

    Raises:
        UsageError: The file is not UTF-8, or (when a line is read) it has changed meanwhile.
    """

    def __init__(self, path: Path, chunk_bytes: int = 1 << 22) -> None:
        self.path = path
        self._version = _version(path)
        content = _mapped(path, self._version)
        data = np.frombuffer(content, dtype=np.uint8)
        begins = self._scan(data, chunk_bytes)
        suspects = np.flatnonzero(_BEGINS_WHITESPACE[data[begins]]).tolist()
        blank = [line for line in suspects if not _line_at(content, int(begins[line]))]
        self._leave_out(blank)
        self._begins = torch.from_numpy(np.delete(begins, blank))

    def _scan(self, data: np.ndarray, chunk_bytes: int) -> np.ndarray:
        """Return where each line begins, having checked that all of them are UTF-8."""
        bom = len(codecs.BOM_UTF8) if data[:3].tobytes() == codecs.BOM_UTF8 else 0
        found = [np.array([bom])]
        checked = 0
        for start in range(0, data.size, chunk_bytes):
            begins = np.flatnonzero(data[start : start + chunk_bytes] == ord("\n")) + start + 1
            if start + chunk_bytes >= data.size:
                begins = np.append(begins, data.size)  # as if the last line ended in a newline
            found.append(begins)
            whole_lines = int(begins[-1]) if begins.size else checked
            self._check(data[checked:whole_lines])
            checked = whole_lines
        begins = np.concatenate(found)
        return begins[begins < data.size]  # no line begins at the end of the file

    def _check(self, lines: np.ndarray) -> None:
        try:
            lines.tobytes().decode()
        except UnicodeDecodeError:
            for _ in read_lines(self.path):  # slower, but says where
                pass
            raise

    def _text(self, position: int) -> str:
        return _line_at(_mapped(self.path, self._version), int(self._begins[position]))

    def __len__(self) -> int:
        return len(self._begins)

    def __iter__(self) -> Iterator[str]:
        return filter(None, map(str.strip, read_lines(self.path)))


class NoColumn(UsageError):
    """The column of a table that was named, if one was, is not there or is none of text."""


class Packed(Rows):
    """Strings kept in one flat UTF-8 buffer.

    Args:
        rows: The values in order: strings, or None for a missing one.
        origin: Where the values come from, to be named in an error.

    Raises:
        NoColumn: A value is neither a string nor None.
    """

    def __init__(self, rows: Iterable[object], origin: str) -> None:
        buffer, ends, blank = bytearray(), array("q", [0]), []
        for number, value in enumerate(rows, 1):
            if value is not None and not isinstance(value, str):
                raise NoColumn(f"{origin}, row {number}: expected a string, found {value!r:.60}.")
            text = (value or "").strip()
            if not text:
                blank.append(number - 1)
                continue
            # JSON can spell half of a surrogate pair, which is no character: it becomes "?".
            buffer += text.encode("utf-8", "replace")
            ends.append(len(buffer))
        self._leave_out(blank)
        self._buffer = torch.from_numpy(np.frombuffer(buffer, dtype=np.uint8))
        self._ends = torch.from_numpy(np.frombuffer(ends, dtype=np.int64))

    def _text(self, position: int) -> str:
        begin, end = self._ends[position : position + 2].tolist()
        return self._buffer[begin:end].numpy().tobytes().decode()

    def __len__(self) -> int:
        return len(self._ends) - 1


class Corpus(Texts):
    """The prompts of several files, one after the other; `blank` counts the rows left out."""

    def __init__(self, parts: Sequence[Lines | Packed]) -> None:
        self.blank = sum(part.blank for part in parts)
        self._parts = parts
        self._starts = list(accumulate((len(part) for part in parts), initial=0))
        self._first_rows = list(accumulate((part.num_rows for part in parts), initial=0))

    def _text(self, position: int) -> str:
        part = bisect_right(self._starts, position) - 1
        return self._parts[part][position - self._starts[part]]

    def row(self, position: int) -> int:
        """Return the row in which a prompt stands, counted from 0 through all files."""
        part = bisect_right(self._starts, position) - 1
        return self._first_rows[part] + self._parts[part].row(position - self._starts[part])

    def __len__(self) -> int:
        return self._starts[-1]

    def __iter__(self) -> Iterator[str]:
        return chain.from_iterable(self._parts)


class Without(Texts):
    """The strings of another sequence less those at some positions.

    Args:
        texts: The other sequence.
        dropped: [K] int64, the positions to leave out, sorted and each given once.
    """

    def __init__(self, texts: Sequence[str], dropped: Tensor) -> None:
        self._texts = texts
        # How many strings are kept before each dropped one.
        self._kept_before = (dropped - torch.arange(len(dropped))).tolist()

    def _text(self, position: int) -> str:
        return self._texts[position + bisect_right(self._kept_before, position)]

    def __len__(self) -> int:
        return len(self._texts) - len(self._kept_before)


def read_lines(path: Path) -> Iterator[str]:
    r"""Yield the lines of a UTF-8 file, with their \n, less the byte order mark.

    Raises:
        UsageError: A line is not UTF-8.
    """
    offset = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                text = line.decode()
            except UnicodeDecodeError as error:
                raise UsageError(
                    f"{path}, line {number}: byte {offset + error.start} of the file, "
                    f"0x{line[error.start]:02x}, is not UTF-8; save the file as UTF-8."
                ) from None
            offset += len(line)
            yield text.removeprefix("\ufeff") if number == 1 else text


def _line_at(content: bytes | mmap.mmap, begin: int) -> str:
    end = content.find(b"\n", begin)
    return content[begin : end if end >= 0 else len(content)].decode().strip()


def _version(path: Path) -> Version:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


# Kept per process and out of the objects: so they pickle, each worker maps for itself, and a glob
# may match more files than a process may hold open.
@functools.lru_cache(maxsize=256)
def _mapped(path: Path, version: Version) -> bytes | mmap.mmap:
    """Map a file into memory, provided that it is still the one whose lines were found."""
    if _version(path) != version:
        raise UsageError(f"{path} has changed since the run began; start the run again.")
    if version[0] == 0:
        return b""  # an empty file cannot be mapped
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
