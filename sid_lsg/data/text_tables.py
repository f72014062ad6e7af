"""Read tables that are text: .jsonl, .csv and .tsv files.

A row with more or fewer fields than the header is an error, since a caption with an unquoted comma
would be cut off.
"""

import csv
import json
import mmap
import re
import sys
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from sid_lsg.data.sequences import NoColumn, read_lines
from sid_lsg.data.table import Table, no_column
from sid_lsg.messages.errors import UsageError

csv.field_size_limit(sys.maxsize)  # fields that are not prompts may exceed the default of 128 KiB

# What Python and pandas write for a list or dictionary: ['a cat', 'a kitty'] or {'text': 'a cat'}.
_CODE = re.compile(r"""\[\s*(['"]).*\1\s*\]|\{\s*(['"])\w*\2\s*:.*\}""", re.DOTALL)
_CARRIAGE_RETURN = (
    "a carriage return (CR) is not followed by a line feed (LF). Save the file with LF line ends"
)
_NAMES = {",": "comma", "\t": "tab"}
_STRAY = re.compile(rb"\r(?![\r\n]|\Z)")  # \r\r\n ends a line, too


class JsonlTable(Table):
    """One JSON object per line; each may have keys of its own."""

    @cached_property
    def columns(self) -> list[str]:
        """The keys of all rows, since each row has its own."""
        return list(dict.fromkeys(name for _, row in self.rows() for name in row))

    def values(self, column: str) -> Iterator[tuple[int, object]]:
        """Yield the number and value of each row in a column."""
        for number, row in self._objects():
            if row is not None and column not in row:
                raise no_column(self.where(number), column, row)
            yield number, row and row[column]

    def rows(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield the number and values of each row that is not blank."""
        return ((number, row) for number, row in self._objects() if row is not None)

    def _objects(self) -> Iterator[tuple[int, dict[str, Any] | None]]:
        for number, line in enumerate(read_lines(self.path), 1):
            if not line.strip():
                yield number, None
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                if "\r" in line.rstrip("\r\n"):
                    raise UsageError(f"{self.where(number)}: {_CARRIAGE_RETURN}.") from None
                raise UsageError(f"{self.where(number)}: not JSON ({error}); correct it.") from None
            if not isinstance(row, dict):
                raise UsageError(
                    f"{self.where(number)}: expected a JSON object, found {row!r:.60}."
                )
            yield number, row


class CsvTable(Table):
    """Fields with a delimiter, and a header with their names."""

    def __init__(self, path: Path, delimiter: str = ",") -> None:
        super().__init__(path)
        self.delimiter = delimiter

    @cached_property
    def columns(self) -> list[str]:
        """The names of the columns."""
        number, fields = next((row for row in self._records() if row[1]), (0, []))
        names = [name.strip() for name in fields]
        others = set(",;|\t") - {self.delimiter}
        if len(names) == 1 and (found := others & set(names[0])):
            raise UsageError(
                f"{self.where(number)}: the header is one field, {names[0]!r:.60}. Separate fields "
                f"by {_NAMES[self.delimiter]}s, not by {min(found)!r}."
            )
        return names

    def values(self, column: str) -> Iterator[tuple[int, object]]:
        """Yield the number and value of each row in a column."""
        if not self.columns:
            return
        self.check_once(column)
        place = self.columns.index(column)
        for number, fields in self._fields():
            if fields:
                self._check_plain(number, fields[place])
            yield number, fields[place] if fields else None

    def rows(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield the number and values of each row that is not blank."""
        for number, fields in self._fields():
            if fields:
                yield number, dict(zip(self.columns, fields, strict=True))

    def texts(self, number: int, value: object) -> list[str]:
        """Return the texts of a field, which must not be the text of a list."""
        self._check_plain(number, str(value))
        return super().texts(number, value)

    def _fields(self) -> Iterator[tuple[int, list[str]]]:
        """Yield the rows below the header, [] for blank ones."""
        records = self._records()
        for _, fields in records:
            if fields:
                break  # the header, which may have blank lines above
        for number, fields in records:
            if fields and len(fields) != len(self.columns):
                name = _NAMES[self.delimiter]
                raise UsageError(
                    f"{self.where(number)}: found {len(fields)} fields, and the header has "
                    f'{len(self.columns)}. Put fields that contain a {name} in quotes ("...").'
                )
            yield number, fields

    def _records(self) -> Iterator[tuple[int, list[str]]]:
        """Yield the line at which each row begins, and its fields: [] if all are blank."""
        reader = csv.reader(
            read_lines(self.path), delimiter=self.delimiter, strict=True, skipinitialspace=True
        )
        while True:
            number = reader.line_num + 1
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                if "new-line character" in str(error):
                    raise UsageError(f"{self.where(number)}: {_CARRIAGE_RETURN}.") from None
                kind = self.path.suffix[1:].upper()
                raise UsageError(f"{self.where(number)}: not {kind} ({error}).") from None
            yield number, fields if any(map(str.strip, fields)) else []

    def _check_plain(self, number: int, field: str) -> None:
        """Reject the text of a list or dictionary, which a CSV file cannot hold."""
        if field[:1] in ("[", "{") and _CODE.fullmatch(field.strip()):
            raise NoColumn(
                f"{self.where(number)}: expected plain text, found the text of a list or a "
                f"dictionary, {field:.60}. Save such a table as .jsonl."
            )


def stripped_lines(path: Path) -> Iterator[str]:
    """Return the lines of a text file without the space around them, also blank ones.

    Raises:
        UsageError: If it is not a text file with LF line ends.
        OSError: If it cannot be read.
    """
    check_lines(path)
    return map(str.strip, read_lines(path))


def check_lines(path: Path) -> None:
    """Reject a text file whose lines do not end in line feeds, or that is not UTF-8 but UTF-16.

    Raises:
        UsageError: If there is a carriage return within a line, or a NUL.
    """
    if path.stat().st_size == 0:
        return  # an empty file cannot be mapped
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if (nul := content.find(b"\0")) >= 0:
            line = content[:nul].count(b"\n") + 1
            raise UsageError(
                f"{path}, line {line}: byte {nul} of the file is NUL, as in UTF-16 and in files "
                "that are no text. Save the file as UTF-8."
            )
        if content.find(b"\r") < 0:
            return
        if stray := _STRAY.search(content):
            line = content[: stray.start()].count(b"\n") + 1
            raise UsageError(f"{path}, line {line}: {_CARRIAGE_RETURN}.")
