"""Base class of tables of prompts and captions: their rows, columns and errors."""

from abc import abstractmethod
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from sid_lsg.data.sequences import NoColumn
from sid_lsg.messages.errors import UsageError


class Table:
    """A table; a subclass implements `columns`, `values` and `rows`.

    Numbers are those of lines, or of rows in a file without lines; they start at 1.
    """

    unit = "line"

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    @abstractmethod
    def columns(self) -> list[str]:
        """The names of the columns; empty if the file is empty."""

    @abstractmethod
    def values(self, column: str) -> Iterator[tuple[int, object]]:
        """Yield the number and value of each row in a column; None for a blank row.

        Raises:
            NoColumn: If there is no such column.
            UsageError: If the file is malformed.
        """

    @abstractmethod
    def rows(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield the number and values of each row that is not blank.

        Raises:
            UsageError: If the file is malformed.
        """

    def where(self, number: int) -> str:
        """Return the place of a row for error messages."""
        return f"{self.path}, {self.unit} {number}"

    def texts(self, number: int, value: object) -> list[str]:
        """Return the texts that a row's value holds, without blank ones.

        This is the rule for all captions: a string is one text, a list of strings is several, and
        null or a blank string is none.

        Raises:
            NoColumn: If the value is a number, an object or anything else.
        """
        texts = []
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, str):
                # JSON may contain half of a surrogate pair; it is not a character: it becomes "?".
                texts.append(item.strip().encode("utf-8", "replace").decode())
            elif item is not None:
                raise NoColumn(
                    f"{self.where(number)}: expected a string or a list of strings, found "
                    f"{value!r:.60}."
                )
        return [text for text in texts if text]

    def check_once(self, column: str) -> None:
        """Reject a column that does not exist, or exists several times.

        Raises:
            UsageError: In both cases; `NoColumn` in the first.
        """
        if column not in self.columns:
            raise no_column(str(self.path), column, self.columns)
        if (count := self.columns.count(column)) > 1:
            raise UsageError(f"{self.path}: {count} columns are named {column!r}. Rename them.")


def no_column(where: str, column: str | None, names: Iterable[str]) -> NoColumn:
    """Return the error for a column that a table does not have."""
    found = "which column holds the prompts?" if column is None else f"no column {column!r}."
    return NoColumn(f"{where}: {found} The columns are: {', '.join(names)}.")
