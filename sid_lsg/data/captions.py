"""Read the captions of a folder of images.

A table that names files is paired with the images by these names, whatever its column is called. A
list of captions without names is paired in the order of the images.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lightning.pytorch.utilities import rank_zero_warn

from sid_lsg.data.pairing import (
    ImageNames,
    begins_with_image,
    in_order_of_numbers,
    names_files,
)
from sid_lsg.data.sequences import read_lines
from sid_lsg.data.table import Table
from sid_lsg.data.tables import is_table, open_table
from sid_lsg.data.text_tables import check_lines, stripped_lines
from sid_lsg.messages.errors import UsageError

COLUMNS = ("caption", "text", "prompt")
FILE_NAME = "file_name"  # as in Hugging Face's `imagefolder` format
METADATA = "metadata"  # the name of that format's table
_SHOWN = 4  # images in a message about their order

Rows = list[tuple[int, dict[str, Any]]]


class _Caption(NamedTuple):
    """The texts of a row, and its place for error messages."""

    where: str
    texts: list[str]


def read_captions(
    path: str,
    column: str | None,
    images: Sequence[Path],
    root: Path,
    option: str = "captions",
) -> list[str]:
    """Read one caption per image from a text file (one per line) or a table.

    Args:
        path: The file of captions.
        column: The table's column of captions; by default `caption`, `text` or `prompt`.
        images: The images, in order.
        root: Their folder.
        option: The option to name in an error.

    Returns:
        The captions, in the order of the images.

    Raises:
        UsageError: If an image has no caption or several, or a caption has no image.
    """
    captions = read_caption_lists(path, column, images, root, option)
    for image, texts in zip(images, captions, strict=True):
        if len(texts) > 1:
            name = image.relative_to(root).as_posix()
            raise UsageError(
                f"--{option}: {path!r} has {len(texts)} captions for {name!r}, such as "
                f"{texts[1]!r:.60}, and scores use one per image. Keep one of them."
            )
    return [text for (text,) in captions]


def read_caption_lists(
    path: str, column: str | None, images: Sequence[Path], root: Path, option: str
) -> list[list[str]]:
    """Read one or several captions per image; the arguments are those of `read_captions`.

    Raises:
        UsageError: If an image has no caption, or a caption has no image.
    """
    file = Path(path).expanduser()
    try:
        if is_table(file):
            return _of_table(open_table(file), column, images, root, option == "captions")
        if file.suffix.lower() != ".txt":
            open_table(file)  # raises the error that names the kinds of files
        lines = [*stripped_lines(file)]
        if 2 * sum(map(begins_with_image, lines)) > len(lines):
            raise UsageError(
                f"the lines of {path!r} begin with the names of images, such as {lines[0]!r:.60}. "
                f"Save them as a .csv or .tsv file with the header {FILE_NAME} and caption."
            )
        captions = [
            _Caption(f"{file}, line {number}", [line] if line else [])
            for number, line in enumerate(lines, 1)
        ]
        return _in_order(captions, file, images, root)
    except UsageError as error:
        raise UsageError(f"--{option}: {error}") from None
    except OSError as error:
        raise UsageError(
            f"--{option}: cannot read {path!r}: {error.strerror or error}. Check the path."
        ) from None


def read_folder_captions(images: Sequence[Path], root: Path, option: str) -> list[list[str]]:
    """Read one or several captions per image of a folder that holds both.

    They are in a table (metadata.jsonl, .csv, .tsv or .parquet), or the whole text of a file beside
    each image is its caption, such as `cat.txt` for `cat.png`.

    Raises:
        UsageError: If there are none, or several tables, or images and captions do not match.
    """
    tables = sorted(
        path
        for path in root.iterdir()
        if path.stem.lower() == METADATA and is_table(path) and path.is_file()
    )
    if len(tables) > 1:
        raise UsageError(
            f"--{option}: {str(root)!r} holds both {tables[0].name} and {tables[1].name}. Keep one."
        )
    if tables:
        return read_caption_lists(str(tables[0]), None, images, root, option)
    captions = []
    for image in images:
        path = image.with_suffix(".txt")
        try:
            check_lines(path)
            text = "".join(read_lines(path)).strip()
        except (OSError, UsageError) as error:
            raise UsageError(
                f"--{option}: {str(root)!r} has no captions: neither {METADATA}.jsonl nor "
                f"{METADATA}.csv with the columns file_name and text, nor a text file for every "
                f"image ({error}). Add one of them."
            ) from error
        if not text:
            raise UsageError(f"--{option}: {str(path)!r} is blank. Every image needs a caption.")
        captions.append([text])
    return captions


def _of_table(
    table: Table,
    column: str | None,
    images: Sequence[Path],
    root: Path,
    has_option: bool,
) -> list[list[str]]:
    known = table.columns
    if not known:
        raise UsageError(f"{str(table.path)!r} is empty. Give a table with captions.")
    column = column or next((name for name in COLUMNS if name in known), COLUMNS[0])
    if column not in known:
        named = f"Name the captions' column {', '.join(COLUMNS[:-1])} or {COLUMNS[-1]}"
        if has_option:
            named = "Give the captions' column as --column"
        raise UsageError(f"{str(table.path)!r} has the columns {', '.join(known)}. {named}.")
    table.check_once(column)
    rows = list(table.rows())
    captions = []
    for number, row in rows:
        if column not in row:
            raise UsageError(
                f"{table.where(number)}: no column {column!r} of text. The columns are: "
                f"{', '.join(row)}."
            )
        captions.append(_Caption(table.where(number), table.texts(number, row[column])))
    names = ImageNames(images, root)
    chosen = _file_column([name for name in known if name != column], rows, names)
    if chosen is None:
        return _in_order(captions, table.path, images, root)
    table.check_once(chosen)
    places = [names.find(row.get(chosen)) for _, row in rows]
    found: list[list[str]] = [[] for _ in images]
    for place, caption in zip(places, captions, strict=True):
        if place is not None and not caption.texts:
            raise UsageError(f"{caption.where}: the caption is blank. Every image needs a caption.")
        if place is not None:
            found[place] += caption.texts
    if lacking := [name for name, texts in zip(names.names, found, strict=True) if not texts]:
        raise UsageError(
            f"{str(table.path)!r} has no caption for {len(lacking)} of {len(images)} images, such "
            f"as {lacking[0]!r}; its column {chosen!r} names the files. Add the captions, or "
            "remove the images."
        )
    if None in places:
        first = rows[places.index(None)]
        raise UsageError(
            f"{str(table.path)!r} holds {len(rows)} captions and {str(root)!r} {len(images)} "
            f"images. {places.count(None)} captions have no image; the first is in {table.unit} "
            f"{first[0]}, whose {chosen!r} is {first[1].get(chosen)!r:.80}. Add the images, or "
            "remove the rows."
        )
    return found


def _file_column(columns: Sequence[str], rows: Rows, names: ImageNames) -> str | None:
    """Choose the column that names the images; None if none names files.

    Raises:
        UsageError: If two columns pair the captions differently.
    """
    if FILE_NAME in columns:
        return FILE_NAME
    found = {}
    for column in columns:
        values = [row.get(column) for _, row in rows]
        places = [names.find(value) for value in values]
        if names_files(column, values, places, len(names.names)):
            found[column] = places
    whole = [
        column
        for column, places in found.items()
        if None not in places and len(set(places)) == len(names.names)
    ]
    if not whole:  # the caller names what is lacking in the best one
        return max(found, key=lambda column: len({*found[column]} - {None}), default=None)
    first = whole[0]
    for other in whole:
        if found[other] != found[first]:
            raise UsageError(
                f"the columns {first!r} and {other!r} name different images. Name the right one "
                f"{FILE_NAME}."
            )
    return first


def _in_order(
    captions: Sequence[_Caption], file: Path, images: Sequence[Path], root: Path
) -> list[list[str]]:
    """Pair captions without file names with the images in order."""
    if len(captions) != len(images):
        raise UsageError(
            f"{str(file)!r} holds {len(captions)} captions and {str(root)!r} {len(images)} images. "
            f"Give one caption per image, in the order of the file names, or a table with the "
            f"column {FILE_NAME}."
        )
    for number, caption in enumerate(captions, 1):
        if not caption.texts:
            raise UsageError(
                f"caption {number} of {str(file)!r} is blank ({caption.where}). Every image needs "
                "a caption."
            )
    names = [image.relative_to(root).as_posix() for image in images]
    if counted := in_order_of_numbers(names):
        rank_zero_warn(
            f"{str(file)!r} names no files, so its captions belong to the images in alphabetical "
            f"order: {', '.join(names[:_SHOWN])}, ... The order by numbers differs: "
            f"{', '.join(counted[:_SHOWN])}, ... If the captions have that order, write the "
            f"images' numbers with leading zeros, or give a table with the column {FILE_NAME}."
        )
    return [caption.texts for caption in captions]
