"""Stream captions from files or data sets, one at a time."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from sid_lsg.data.captions import COLUMNS
from sid_lsg.data.corpus import find_files
from sid_lsg.data.hub_tables import HubTable
from sid_lsg.data.sequences import NoColumn, read_lines
from sid_lsg.data.table import Table, no_column
from sid_lsg.data.tables import TABLES, is_table, open_table
from sid_lsg.data.text_tables import check_lines
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
        try:
            if isinstance(table, Path) and not is_table(table):
                yield from _lines(table)
            else:
                yield from _of_table(
                    table if isinstance(table, Table) else open_table(table), column
                )
        except NoColumn as error:
            raise UsageError(f"--source: {error} Give --column a column of text.") from None
        except UsageError as error:
            named = str(error).startswith("--")
            raise UsageError(str(error) if named else f"--source: {error}") from None
        except OSError as error:
            raise UsageError(f"--source: cannot read {table}: {error.strerror or error}.") from None


def excluded_texts(files: Sequence[Path], column: str | None) -> Iterator[str]:
    """Yield the texts of --exclude: of .txt files, of tables, and of COCO's annotations (.json).

    Raises:
        UsageError: If a file cannot be read.
    """
    for path in files:
        try:
            if path.suffix.lower() == ".json":
                yield from _annotations(path)
            elif is_table(path):
                table = open_table(path)
                guess = next((name for name in COLUMNS if name in table.columns), None)
                yield from _of_table(table, column or guess)
            else:
                yield from _lines(path)
        except NoColumn as error:
            raise UsageError(
                f"--exclude: {error} Give --exclude_column a column of text."
            ) from None
        except UsageError as error:
            raise UsageError(f"--exclude: {error}") from None
        except OSError as error:
            raise UsageError(f"--exclude: cannot read {path}: {error.strerror or error}.") from None


def read_list(path: Path, option: str) -> list[str]:
    """Read the lines of a file that are not blank.

    Raises:
        UsageError: If it cannot be read.
    """
    try:
        return [line for line in _lines(path) if line]
    except UsageError as error:
        raise UsageError(f"--{option}: {error}") from None
    except OSError as error:
        raise UsageError(f"--{option}: cannot read {path}: {error.strerror or error}.") from None


def _is_file(path: Path) -> bool:
    """Return True for a path that looks like a Hub id, but is a file by its suffix."""
    return path.suffix.lower() == ".txt" or is_table(path)


def _lines(path: Path) -> Iterator[str]:
    if path.suffix.lower() != ".txt":
        raise UsageError(f"{path} is not a .txt, {TABLES} file. Convert it to one of them.")
    check_lines(path)
    for line in read_lines(path):
        yield line.strip()


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
