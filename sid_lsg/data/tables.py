"""Open the tables that hold prompts and captions; all readers open them here."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from sid_lsg.data.parquet_tables import ParquetTable
from sid_lsg.data.table import Table
from sid_lsg.data.text_tables import CsvTable, JsonlTable
from sid_lsg.messages.errors import UsageError

_KINDS: dict[str, Callable[[Path], Table]] = {
    ".jsonl": JsonlTable,
    ".csv": CsvTable,
    ".tsv": partial(CsvTable, delimiter="\t"),
    ".parquet": ParquetTable,
}
TABLES = ".jsonl, .csv, .tsv or .parquet"


def is_table(path: Path) -> bool:
    """Return True if the file is a table by its suffix."""
    return path.suffix.lower() in _KINDS


def open_table(path: Path) -> Table:
    """Open a table.

    Raises:
        UsageError: If the file is none by its suffix, or its reader is not installed.
        OSError: If the file cannot be opened.
    """
    if not is_table(path):
        raise UsageError(f"{path} is not a .txt, {TABLES} file; convert it to one of them.")
    return _KINDS[path.suffix.lower()](path)
