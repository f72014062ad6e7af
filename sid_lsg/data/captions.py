"""The captions of a folder of images."""

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
    """Read each image's caption from a text file (a line each) or a table (.jsonl, .csv).

    A table with the column `file_name` names its images by their path in the folder; all else is in
    the order of the images.

    Args:
        path: The file of captions.
        column: The table's column of captions; by default `caption`, `text` or `prompt`.
        images: The images to be captioned, in order.
        root: Their folder.
        option: The option to name in an error.

    Raises:
        UsageError: If an image is left without a caption, or a caption without an image.
    """
    try:
        rows = _rows(Path(path).expanduser())
    except (OSError, ValueError, csv.Error) as error:
        raise UsageError(f"--{option}: cannot read {path!r}: {error}.") from error
    column = column or next((name for name in COLUMNS if rows and name in rows[0]), COLUMNS[0])
    if any(column not in row for row in rows):
        found = ", ".join(filter(None, rows[0]))  # None are fields beyond the header's
        named = f"The captions' must be called {', '.join(COLUMNS[:-1])} or {COLUMNS[-1]}"
        if option == "captions":
            named = "Name that of the captions by --column"
        raise UsageError(f"--{option}: {path!r} has the columns {found}. {named}.")
    captions = [_characters(str(row[column] or "").strip()) for row in rows]
    if rows and FILE_NAME in rows[0]:
        by_name = dict(zip((str(row.get(FILE_NAME)) for row in rows), captions, strict=True))
        names = [image.relative_to(root).as_posix() for image in images]
        if lacking := [name for name in names if name not in by_name]:
            raise UsageError(
                f"--{option}: {path!r} has no caption for {len(lacking)} of {len(names)} images, "
                f"the first of them {lacking[0]!r}. Add them, or remove the images."
            )
        captions = [by_name[name] for name in names] + captions[len(names) :]
    if len(captions) != len(images):
        raise UsageError(
            f"--{option}: {path!r} holds {len(captions)} captions and {str(root)!r} {len(images)} "
            "images. Give one for each image, in the order of the files' names."
        )
    if "" in captions:
        raise UsageError(
            f"--{option}: caption {captions.index('') + 1} of {path!r} is blank. Every image needs "
            "one."
        )
    return captions


def _characters(text: str) -> str:
    """Put "?" for half of a surrogate pair, which JSON can spell, as `read_corpus` does."""
    return text.encode("utf-8", "replace").decode()


def _rows(path: Path) -> list[dict[str, Any]]:
    """Read a file's rows; a text file's lines are rows of one column."""
    kind = path.suffix.lower()
    if kind == ".txt":
        return [{COLUMNS[0]: line} for line in read_lines(path)]
    if kind == ".csv":
        return list(csv.DictReader(read_lines(path), strict=True))
    if kind != ".jsonl":
        raise ValueError("it is none of .txt, .jsonl and .csv")
    rows = [json.loads(line) for line in read_lines(path) if line.strip()]
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError("its lines are not all JSON objects")
    return rows
