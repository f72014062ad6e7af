"""Find prompt files and open them as one sequence of prompts.

A .txt file is not loaded: one scan finds where its lines start, and a prompt is decoded when it is
accessed. Tables (.jsonl, .csv, .parquet) are read once; only the prompts are kept in memory.
"""

import csv
import glob
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from sid_lsg.data.sequences import Corpus, Lines, NoColumn, Packed, read_lines
from sid_lsg.files.sources import resolve
from sid_lsg.messages.errors import UsageError


def find_files(patterns: str | Sequence[str], option: str) -> list[Path]:
    """List the files that paths and globs match, each glob's in alphabetical order.

    Args:
        patterns: Paths or globs, relative to the working directory, or to the installed package if
            they start with `package:`.
        option: The option to name in an error, such as `--data.prompts`.

    Raises:
        UsageError: If a path is not a file, or a glob matches no file.
    """
    files: list[Path] = []
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        name = resolve(pattern)
        if os.path.isdir(name):
            raise UsageError(f"{option}: {pattern} is a directory; give files, as '{name}/*.txt'.")
        if os.path.exists(name):  # first, since the name of a file may look like a glob: a[1].txt
            files.append(Path(name))
            continue
        matches = [path for path in sorted(glob.glob(name, recursive=True)) if os.path.isfile(path)]
        if not matches:
            found = "no file matches" if glob.has_magic(name) else "there is no file"
            raise UsageError(
                f"{option}: {found} {pattern!r}; check the path (relative paths start at the "
                f"working directory, {Path.cwd()})."
            )
        files += map(Path, matches)
    return files


def read_corpus(
    files: Sequence[Path], column: str | None, option: str, column_option: str | None = "--column"
) -> Corpus:
    """Open prompt files: .txt (one prompt per line), or a column of .jsonl, .csv or .parquet.

    Args:
        files: The files.
        column: The column of the tables that holds the prompts.
        option: The option to name in an error, such as `--data.prompts`.
        column_option: The option that set the column; None if there is none.

    Raises:
        UsageError: If a file cannot be read, is malformed, has no such column or holds no prompt.
    """
    parts = []
    for path in files:
        try:
            parts.append(_read(path, column))
        except NoColumn as error:
            kind = f"{column_option} a column of text" if column_option else "a .txt file"
            raise UsageError(f"{option}: {error} Give {kind}.") from None
        except UsageError as error:
            raise UsageError(f"{option}: {error}") from None
        except OSError as error:
            raise UsageError(f"{option}: cannot read {path}: {error.strerror or error}.") from None
    return Corpus(parts)


def _read(path: Path, column: str | None) -> Lines | Packed:
    kind = path.suffix.lower()
    if kind == ".txt":
        part: Lines | Packed = Lines(path)
    elif kind in _TABLES:
        part = Packed(_TABLES[kind](path, column), f"{path}, column {column!r}")
    else:
        raise UsageError(
            f"{path} is not a .txt, .jsonl, .csv or .parquet file; convert it to one of them."
        )
    if not len(part):
        raise UsageError(
            f"{path} holds no prompt ({part.blank} blank rows); remove it or add prompts."
        )
    return part


def _jsonl_rows(path: Path, column: str | None) -> Iterator[object]:
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip():
            yield None
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UsageError(f"{path}, line {number}: not JSON ({error}); correct it.") from None
        if not isinstance(row, dict):
            raise UsageError(f"{path}, line {number}: expected a JSON object, found {row!r:.60}.")
        if column not in row:
            raise _no_column(f"{path}, line {number}", column, row)
        yield row[column]


def _csv_rows(path: Path, column: str | None) -> Iterator[object]:
    reader = csv.reader(read_lines(path), strict=True)
    try:
        header = next(reader, None)
        if header is None:
            return
        if column not in header:
            raise _no_column(str(path), column, header)
        which = header.index(column)
        for row in reader:
            yield row[which] if which < len(row) else None
    except csv.Error as error:
        raise UsageError(f"{path}, line {reader.line_num}: not CSV ({error}).") from None


def _parquet_rows(path: Path, column: str | None) -> Iterator[object]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise UsageError(
            f"{path}: reading .parquet needs pyarrow: pip install 'sid-lsg[parquet]'."
        ) from None
    try:
        with parquet.ParquetFile(path) as file:
            if column not in file.schema_arrow.names:
                raise _no_column(str(path), column, file.schema_arrow.names)
            for batch in file.iter_batches(columns=[column]):
                yield from batch.column(0).to_pylist()
    except pyarrow.ArrowException as error:
        raise UsageError(f"{path}: not a readable parquet file ({error}).") from None
    except UnicodeDecodeError as error:  # writers of .parquet do not check their text
        raise UsageError(
            f"{path}, column {column!r}: a prompt is not UTF-8 ({error.reason}); save it as UTF-8."
        ) from None


_TABLES = {".jsonl": _jsonl_rows, ".csv": _csv_rows, ".parquet": _parquet_rows}


def _no_column(where: str, column: str | None, names: Iterable[str]) -> NoColumn:
    found = "which column holds the prompts?" if column is None else f"no column {column!r}."
    return NoColumn(f"{where}: {found} The columns are: {', '.join(names)}.")
