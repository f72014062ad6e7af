"""Find prompt files and open them as one sequence of prompts.

A .txt file is not loaded: one scan finds where its lines start, and a prompt is decoded when it is
accessed. Tables (.jsonl, .csv, .tsv, .parquet) are read once; only the prompts are kept in memory.
"""

import glob
import os
from collections.abc import Sequence
from pathlib import Path

from sid_lsg.data.sequences import Corpus, Lines, NoColumn, Packed
from sid_lsg.data.table import no_column
from sid_lsg.data.tables import open_table
from sid_lsg.data.text_tables import check_lines
from sid_lsg.files.sources import resolve
from sid_lsg.messages.errors import UsageError

_NAMED = 20  # maximum number of files in a message


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
    """Open prompt files: .txt (one prompt per line), or a column of a table.

    Args:
        files: The files.
        column: The column of the tables that holds the prompts.
        option: The option to name in an error, such as `--data.prompts`.
        column_option: The option that set the column; None if there is none.

    Raises:
        UsageError: If a file cannot be read, is malformed, has no such column or holds no prompt.
    """
    parts, empty = [], []
    for path in files:
        try:
            part = _read(path, column)
        except NoColumn as error:
            kind = f"{column_option} a column of text" if column_option else "a .txt file"
            raise UsageError(f"{option}: {error} Give {kind}.") from None
        except UsageError as error:
            raise UsageError(f"{option}: {error}") from None
        except OSError as error:
            raise UsageError(f"{option}: cannot read {path}: {error.strerror or error}.") from None
        if not len(part):
            empty.append(f"{path} holds no prompt ({part.blank} blank rows)")
        parts.append(part)
    if empty:
        more = f"; and {len(empty) - _NAMED} more files" if len(empty) > _NAMED else ""
        them = "it or add prompts" if len(empty) == 1 else "them or add prompts"
        raise UsageError(f"{option}: {'; '.join(empty[:_NAMED])}{more}; remove {them}.")
    return Corpus(parts)


def _read(path: Path, column: str | None) -> Lines | Packed:
    if path.suffix.lower() == ".txt":
        check_lines(path)
        return Lines(path)
    table = open_table(path)
    if column is None:
        if not table.columns:
            return Packed([], str(path))
        raise no_column(str(path), column, table.columns)
    values = (value for _, value in table.values(column))
    return Packed(values, f"{path}, column {column!r}")
