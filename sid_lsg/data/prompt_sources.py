"""Stream captions from files or data sets, one at a time."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from sid_lsg.data.captions import COLUMNS
from sid_lsg.data.corpus import find_files
from sid_lsg.data.hub_tables import HubTable
from sid_lsg.data.sequences import NoColumn
from sid_lsg.data.table import Table, no_column
from sid_lsg.data.tables import TABLES, is_table, open_table
from sid_lsg.data.text_tables import stripped_lines
from sid_lsg.files.sources import locate
from sid_lsg.messages.errors import UsageError


def open_source(
    source: str | Sequence[str], subset: str | None, split: str | None, revision: str | None
) -> list[Path] | HubTable:
    """Find the files that --source names, or open the data set.

    Raises:
        UsageError: If there is neither, or options of data sets are given for files.
    """
    names = [source] if isinstance(source, str) else list(source)
    found = locate(names[0]) if len(names) == 1 else None
    if found and (found.kind == "folder" or (found.kind == "hub" and not _is_file(found.path))):
        return HubTable(found.location, subset, split or "train", revision)
    for option, value in {"subset": subset, "split": split, "revision": revision}.items():
        if value is not None:
            raise UsageError(
                f"--{option} is for data sets, and --source names files. Leave --{option} out."
            )
    return find_files(names, "--source")


def captions(opened: Sequence[Path] | HubTable, column: str | None) -> Iterator[str]:
    """Yield the captions of files or of a data set, "" for blank ones.

    Args:
        opened: What `open_source` returned.
        column: The column of the captions; None for .txt files.

    Raises:
        UsageError: If one cannot be read, or has no such column of text.
    """
    for table in [opened] if isinstance(opened, HubTable) else opened:
        with _named("source", table, "column"):
            if isinstance(table, Table):
                yield from _of_table(table, column)
            elif is_table(table):
                yield from _of_table(open_table(table), column)
            else:
                yield from _lines(table)


def excluded_texts(files: Sequence[Path], column: str | None) -> Iterator[str]:
    """Yield the texts of --exclude: of .txt files, of tables, and of COCO's annotations (.json).

    Raises:
        UsageError: If a file cannot be read.
    """
    for path in files:
        with _named("exclude", path, "exclude_column"):
            if path.suffix.lower() == ".json":
                yield from _annotations(path)
            elif is_table(path):
                table = open_table(path)
                guess = next((name for name in COLUMNS if name in table.columns), None)
                yield from _of_table(table, column or guess)
            else:
                yield from _lines(path)


def read_list(path: Path, option: str) -> list[str]:
    """Read the lines of a file that are not blank.

    Raises:
        UsageError: If it cannot be read.
    """
    with _named(option, path):
        return [line for line in _lines(path) if line]


@contextmanager
def _named(option: str, source: object, column: str = "column") -> Iterator[None]:
    """Put the name of an option before errors in reading what it gave."""
    try:
        yield
    except NoColumn as error:
        raise UsageError(f"--{option}: {error} Give --{column} a column of text.") from None
    except UsageError as error:
        said = str(error)
        raise UsageError(said if said.startswith("--") else f"--{option}: {said}") from None
    except OSError as error:
        raise UsageError(f"--{option}: cannot read {source}: {error.strerror or error}.") from None


def _is_file(path: Path) -> bool:
    """Return True for a path that looks like a Hub id, but is a file by its suffix."""
    return path.suffix.lower() == ".txt" or is_table(path)


def _lines(path: Path) -> Iterator[str]:
    if path.suffix.lower() != ".txt":
        raise UsageError(f"{path} is not a .txt, {TABLES} file. Convert it to one of them.")
    yield from stripped_lines(path)


def _of_table(table: Table, column: str | None) -> Iterator[str]:
    if column is None:
        raise no_column(str(table.path), column, table.columns)
    for number, value in table.values(column):
        yield from table.texts(number, value) or [""]


def _annotations(path: Path) -> Iterator[str]:
    """Yield the captions of COCO's annotations, or the strings of a list."""
    try:
        content = json.loads(path.read_text("utf-8-sig"))
    except ValueError as error:
        raise UsageError(f"{path} is not JSON ({error}). Give COCO's annotations.") from None
    entries = content.get("annotations") if isinstance(content, dict) else content
    entries = entries if isinstance(entries, list) else []
    found = [entry.get("caption") if isinstance(entry, dict) else entry for entry in entries]
    texts = [text for text in found if isinstance(text, str)]
    if not texts or len(texts) < len(found):
        raise UsageError(
            f"{path} is not a COCO caption file: it has no list 'annotations' of captions. Give "
            "captions_val2014.json, a table or a .txt file."
        )
    yield from texts
