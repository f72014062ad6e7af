"""Sequences of strings that are cheap to open and to share with the workers of a data loader.

They hold a few large arrays and no Python object per string. Forked workers share the arrays'
memory with their parent (reference counting would copy the pages of objects), and spawned workers
receive them as shared memory. Arrow arrays of strings are not shared: five million lines take 413
MiB, and again in every spawned worker, compared with 40 MiB of shared offsets.
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

Version = tuple[int, int]  # a file's size and modification time

# True for bytes that can start a whitespace character (all are in the first plane of Unicode). A
# line that starts with another byte is not blank, so Python need not decode it.
_BEGINS_WHITESPACE = np.zeros(256, dtype=bool)
_BEGINS_WHITESPACE[list({c.encode()[0] for c in map(chr, range(0x10000)) if c.isspace()})] = True


# Lines per stored offset: 100 million lines take 13 MB. Finding a line among them takes 10 us.
_EVERY = 64


class Texts(Sequence[str]):
    """Strings by position; a subclass implements `__len__` and `_text`."""

    @abstractmethod
    def _text(self, position: int) -> str:
        """Return the string at a position in 0..len-1."""

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        """Return one string, or a list of strings for a slice."""
        positions = range(len(self))[index]  # resolves negative indices, raises IndexError
        if isinstance(positions, int):
            return self._text(positions)
        return [self._text(position) for position in positions]


class Rows(Texts):
    """The rows of a file that are not blank.

    Attributes:
        blank: Number of blank rows, which are left out.
    """

    def _leave_out(self, blank: Sequence[int]) -> None:
        """Store the indices of the blank rows, in increasing order."""
        self.blank = len(blank)
        rows = np.asarray(blank, dtype=np.int64)
        self._kept_before = torch.from_numpy(rows - np.arange(len(rows)))

    @property
    def num_rows(self) -> int:
        """Return the number of rows, including blank ones."""
        return len(self) + self.blank

    def row(self, position: int) -> int:
        """Return the row number of a string, counted from 0 and including blank rows."""
        at = torch.searchsorted(self._kept_before, torch.tensor(position), right=True)
        return position + int(at)


class Lines(Rows):
    r"""The stripped, non-blank lines of a UTF-8 text file, read on demand.

    Only \n ends a line; the \r of an \r\n is stripped with the other whitespace.

    Args:
        path: The file.
        chunk_bytes: Number of bytes to scan at a time; no effect on the result.

    Raises:
        UsageError: If the file is not UTF-8, or (when a line is read) has changed since.
    """

    def __init__(self, path: Path, chunk_bytes: int = 1 << 22) -> None:
        self.path = path
        self._version = _version(path)
        content = _mapped(path, self._version)
        data = np.frombuffer(content, dtype=np.uint8)
        marks, blank, rows = [], array("q"), 0
        self._count = 0
        for begins in self._scan(data, chunk_bytes):
            suspects = np.flatnonzero(_BEGINS_WHITESPACE[data[begins]]).tolist()
            empty = [line for line in suspects if not _line_at(content, int(begins[line]))]
            blank.extend(rows + line for line in empty)
            rows += len(begins)
            kept = np.delete(begins, empty) if empty else begins
            # A copy: the view would keep all offsets of this part in memory.
            marks.append(kept[-self._count % _EVERY :: _EVERY].copy())
            self._count += len(kept)
        self._leave_out(blank)
        self._marks = torch.from_numpy(np.concatenate([np.empty(0, np.int64), *marks]))

    def _scan(self, data: np.ndarray, chunk_bytes: int) -> Iterator[np.ndarray]:
        """Check that all lines are UTF-8, and yield the offsets at which they start, in parts."""
        begin = len(codecs.BOM_UTF8) if data[:3].tobytes() == codecs.BOM_UTF8 else 0
        checked = 0
        for start in range(0, data.size, chunk_bytes):
            ends = np.flatnonzero(data[start : start + chunk_bytes] == ord("\n")) + start + 1
            last = start + chunk_bytes >= data.size and begin < data.size
            if last and not (ends.size and ends[-1] == data.size):
                ends = np.append(ends, data.size)  # as if the last line ended in a newline
            if not ends.size:
                continue
            whole_lines = int(ends[-1])
            self._check(data[checked:whole_lines])
            checked = whole_lines
            # The last line has not ended yet, and its start is the next part's first.
            yield np.concatenate(([begin], ends[:-1]))
            begin = whole_lines

    def _check(self, lines: np.ndarray) -> None:
        try:
            lines.tobytes().decode()
        except UnicodeDecodeError:
            for _ in read_lines(self.path):  # slower, but reports the position
                pass
            raise

    def _text(self, position: int) -> str:
        content = _mapped(self.path, self._version)
        begin, before = int(self._marks[position // _EVERY]), position % _EVERY
        while before or not _has_text(content, begin):
            before -= _has_text(content, begin)
            begin = content.find(b"\n", begin) + 1
        return _line_at(content, begin)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[str]:
        return filter(None, map(str.strip, read_lines(self.path)))


class NoColumn(UsageError):
    """A table has no such column, or the column does not contain text."""


class Packed(Rows):
    """Strings in one flat UTF-8 buffer.

    Args:
        rows: The values in order: strings, or None for a missing value.
        origin: Source of the values, for error messages.

    Raises:
        NoColumn: If a value is neither a string nor None.
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
            # JSON may contain half of a surrogate pair; it is not a character and becomes "?".
            buffer += text.encode("utf-8", "replace")
            ends.append(len(buffer))
        self._leave_out(blank)
        self._buffer = torch.from_numpy(np.frombuffer(buffer, dtype=np.uint8))
        self._ends = torch.from_numpy(np.frombuffer(ends, dtype=np.int64))

    def _text(self, position: int) -> str:
        begin, end = self._ends[position : position + 2].tolist()
        return self._buffer[begin:end].numpy().tobytes().decode()

    def __iter__(self) -> Iterator[str]:
        view, begin = self._buffer.numpy().data, 0
        for ends in self._ends[1:].split(1 << 16):  # 20 times as fast as one text at a time
            for end in ends.tolist():
                yield str(view[begin:end], "utf-8")
                begin = end

    def __len__(self) -> int:
        return len(self._ends) - 1


class Corpus(Texts):
    """The prompts of several files in sequence; `blank` is the number of blank rows."""

    def __init__(self, parts: Sequence[Lines | Packed]) -> None:
        self.blank = sum(part.blank for part in parts)
        self._parts = parts
        self._starts = list(accumulate((len(part) for part in parts), initial=0))
        self._first_rows = list(accumulate((part.num_rows for part in parts), initial=0))

    def _text(self, position: int) -> str:
        part = bisect_right(self._starts, position) - 1
        return self._parts[part][position - self._starts[part]]

    def row(self, position: int) -> int:
        """Return the row number of a prompt, counted from 0 through all files."""
        part = bisect_right(self._starts, position) - 1
        return self._first_rows[part] + self._parts[part].row(position - self._starts[part])

    def __len__(self) -> int:
        return self._starts[-1]

    def __iter__(self) -> Iterator[str]:
        return chain.from_iterable(self._parts)


class Without(Texts):
    """The strings of another sequence except those at some positions.

    Args:
        texts: The other sequence.
        dropped: [K] int64, the positions to leave out, sorted and unique.
    """

    def __init__(self, texts: Sequence[str], dropped: Tensor) -> None:
        self._texts = texts
        # Number of strings that are kept before each dropped one.
        self._kept_before = (dropped - torch.arange(len(dropped))).tolist()

    def _text(self, position: int) -> str:
        return self._texts[position + bisect_right(self._kept_before, position)]

    def __len__(self) -> int:
        return len(self._texts) - len(self._kept_before)

    def __iter__(self) -> Iterator[str]:
        dropped = iter([before + i for i, before in enumerate(self._kept_before)])
        following = next(dropped, -1)
        for place, text in enumerate(self._texts):
            if place == following:
                following = next(dropped, -1)
            else:
                yield text


def read_lines(path: Path) -> Iterator[str]:
    r"""Yield the lines of a UTF-8 file with their \n, without the byte order mark.

    Raises:
        UsageError: If a line is not UTF-8.
    """
    offset = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                text = line.decode()
            except UnicodeDecodeError as error:
                raise UsageError(
                    f"{path}, line {number}: byte {offset + error.start} of the file, "
                    f"0x{line[error.start]:02x}, is not UTF-8. Save the file as UTF-8."
                ) from None
            offset += len(line)
            yield text.removeprefix("\ufeff") if number == 1 else text


def _line_at(content: bytes | mmap.mmap, begin: int) -> str:
    end = content.find(b"\n", begin)
    return content[begin : end if end >= 0 else len(content)].decode().strip()


def _has_text(content: bytes | mmap.mmap, begin: int) -> bool:
    """Return whether the line that begins here is not blank."""
    return not _BEGINS_WHITESPACE[content[begin]] or bool(_line_at(content, begin))


def _version(path: Path) -> Version:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


# Cached per process and not in the objects: so the objects can be pickled, each worker maps the
# files itself, and a glob may match more files than a process may keep open.
@functools.lru_cache(maxsize=256)
def _mapped(path: Path, version: Version) -> bytes | mmap.mmap:
    """Map a file into memory if it is unchanged since its lines were scanned."""
    if _version(path) != version:
        raise UsageError(f"{path} has changed since the run started. Start the run again.")
    if version[0] == 0:
        return b""  # an empty file cannot be mapped
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
