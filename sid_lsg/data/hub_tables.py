"""Stream data sets of the Hub, or of a folder in its layouts; needs the library `datasets`."""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from sid_lsg.data.table import Table
from sid_lsg.files.loading import explained
from sid_lsg.messages.errors import UsageError


class HubTable(Table):
    """A data set that is read as it is downloaded; only the columns that are asked for."""

    unit = "row"

    def __init__(
        self,
        source: str,
        subset: str | None = None,
        split: str = "train",
        revision: str | None = None,
        option: str = "source",
    ) -> None:
        """Open a data set.

        Args:
            source: Its Hub id, or a folder.
            subset: Name of its configuration.
            split: Its part.
            revision: Branch, tag or commit.
            option: The option that named it, for messages.

        Raises:
            UsageError: If the library is missing, or the data set cannot be opened.
        """
        super().__init__(Path(source))
        try:
            import datasets
        except ImportError:
            raise UsageError(
                f"--{option}: reading the data set {source!r} needs the library `datasets`: "
                "pip install 'sid-lsg[datasets]'."
            ) from None
        datasets.disable_progress_bars()
        self._explained = (
            f"--{option}: could not read the split {split!r} of the data set {source!r}",
            "Check its id, --subset, --split and --revision.",
        )
        with explained(*self._explained):
            self._data = datasets.load_dataset(
                source, subset, split=split, revision=revision, streaming=True
            )

    @cached_property
    def columns(self) -> list[str]:
        """The names of the columns."""
        with explained(*self._explained):
            return self._data.column_names or list(next(iter(self._data), {}))

    def values(self, column: str) -> Iterator[tuple[int, object]]:
        """Yield the number and value of each row in a column."""
        self.check_once(column)
        chosen = self._data.select_columns([column])  # images beside it are not decoded
        with explained(*self._explained):
            for number, row in enumerate(chosen, 1):
                yield number, row[column]

    def rows(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield the number and values of each row."""
        with explained(*self._explained):
            yield from enumerate(self._data, 1)
