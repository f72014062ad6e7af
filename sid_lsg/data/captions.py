"""Read the captions of a folder of images."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sid_lsg.data.sequences import read_lines
from sid_lsg.messages.errors import UsageError

COLUMNS = ("caption", "text", "prompt")
FILE_NAME = "file_name"  # as in Hugging Face's `imagefolder` format


def read_captions(
    path: str,
    column: str | None,
    images: Sequence[Path],
    root: Path,
    option: str = "captions",
) -> list[str]:
    """Read one caption per image from a text file (one per line) or a table (.jsonl, .csv).

    A table with the column `file_name` refers to images by their path in the folder. Otherwise
    captions are in the order of the images.

    Args:
        path: The file of captions.
        column: The table's column of captions; by default `caption`, `text` or `prompt`.
        images: The images, in order.
        root: Their folder.
        option: The option to name in an error.

    Returns:
        The captions, in the order of the images.

    Raises:
        UsageError: If an image has no caption, or a caption has no image.
    """
    try:
        rows = _rows(Path(path).expanduser())
    except (OSError, ValueError, csv.Error) as error:
        raise UsageError(f"--{option}: cannot read {path!r}: {error}.") from error
    column = column or next((name for name in COLUMNS if rows and name in rows[0]), COLUMNS[0])
    if any(column not in row for row in rows):
        found = ", ".join(filter(None, rows[0]))  # None stands for fields beyond the header
        named = f"Name the captions' column {', '.join(COLUMNS[:-1])} or {COLUMNS[-1]}"
        if option == "captions":
            named = "Give the captions' column as --column"
        raise UsageError(f"--{option}: {path!r} has the columns {found}. {named}.")
    captions = [_characters(str(row[column] or "").strip()) for row in rows]
    if rows and FILE_NAME in rows[0]:
        by_name = dict(zip((str(row.get(FILE_NAME)) for row in rows), captions, strict=True))
        names = [image.relative_to(root).as_posix() for image in images]
        if lacking := [name for name in names if name not in by_name]:
            raise UsageError(
                f"--{option}: {path!r} has no caption for {len(lacking)} of {len(names)} images, "
                f"such as {lacking[0]!r}. Add the captions, or remove the images."
            )
        captions = [by_name[name] for name in names] + captions[len(names) :]
    if len(captions) != len(images):
        raise UsageError(
            f"--{option}: {path!r} holds {len(captions)} captions and {str(root)!r} {len(images)} "
            "images. Give one caption per image, in the order of the file names."
        )
    if "" in captions:
        raise UsageError(
            f"--{option}: caption {captions.index('') + 1} of {path!r} is blank. Every image needs "
            "a caption."
        )
    return captions


def _characters(text: str) -> str:
    """Replace lone surrogates, which JSON allows, by "?", as `read_corpus` does."""
    return text.encode("utf-8", "replace").decode()


def _rows(path: Path) -> list[dict[str, Any]]:
    """Read a file's rows; each line of a text file is a row with one column."""
    kind = path.suffix.lower()
    if kind == ".txt":
        return [{COLUMNS[0]: line} for line in read_lines(path)]
    if kind == ".csv":
        return list(csv.DictReader(read_lines(path), strict=True))
    if kind != ".jsonl":
        raise ValueError("it is not a .txt, .jsonl or .csv file")
    rows = [json.loads(line) for line in read_lines(path) if line.strip()]
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError("its lines are not all JSON objects")
    return rows
