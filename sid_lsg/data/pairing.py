"""Find the images that the rows of a table name."""

import re
import unicodedata
from collections.abc import Hashable, Sequence
from pathlib import Path, PurePosixPath

from sid_lsg.images.folder import EXTENSIONS

Parts = tuple[str, ...]

# Usual names of columns of files, without case and underscores; others are known by their values.
_IMAGE, _FILE = ("", "image", "img", "picture", "photo"), ("", "file", "path", "filename")
_COLUMNS = {image + file for image in _IMAGE for file in (*_FILE, "filepath", "name")} - {""}
_COLUMNS |= {f"{name}s" for name in _COLUMNS} | {"imageid", "imgid"}
_COLUMNS -= {"name", "names"}

_BEGIN = re.compile(r"[\t,;|:#]|\s+-\s+|\s")  # what may end a name at the start of a line
_NUMBER = re.compile(r"[0-9]+")


class ImageNames:
    """Finds images by the names that tables give them.

    A row may name an image by its path in the folder (`more/cat.png`), by the end of that path if
    no other image has the same (`cat.png`), by a path that includes the folder
    (`photos/more/cat.png`), each also without suffix, or by the number in the name (139 for
    `000000000139.jpg`).

    Args:
        images: The images.
        root: Their folder.

    Attributes:
        names: The images' paths in the folder.
    """

    def __init__(self, images: Sequence[Path], root: Path) -> None:
        self.names = [image.relative_to(root).as_posix() for image in images]
        self._roots = {_parts(root.absolute().as_posix()), _parts(root.resolve().as_posix())}
        self._whole: dict[Parts, int | None] = {}
        self._ends: dict[Parts, int | None] = {}
        self._numbers: dict[int, int | None] = {}
        for place, name in enumerate(self.names):
            parts = _parts(name)
            short = (*parts[:-1], PurePosixPath(parts[-1]).stem)
            _add(self._whole, parts, place)
            for named in (parts, short):
                for start in range(len(named)):
                    _add(self._ends, named[start:], place)
            if short[-1].isdecimal():
                _add(self._numbers, int(short[-1]), place)

    def find(self, value: object) -> int | None:
        """Return the index of the image that a value names; None if it names none or several.

        An object with a `path`, as Hugging Face stores an image, names this path.
        """
        if isinstance(value, dict):
            value = value.get("path")
        if isinstance(value, bool) or not isinstance(value, str | int):
            return None
        whole = _parts(str(value).strip())
        below = [whole[n:] for n in range(1, len(whole)) if self._is_root(whole[:n])]
        for known in (self._whole, self._ends):
            for parts in (whole, *below):
                if parts in known:
                    return known[parts]
        if len(whole) == 1 and whole[0].isdecimal():
            return self._numbers.get(int(whole[0]))
        return None

    def _is_root(self, parts: Parts) -> bool:
        return any(parts == root[-len(parts) :] for root in self._roots)


def in_order_of_numbers(names: Sequence[str]) -> list[str]:
    """Return names that differ only in numbers in numeric order, if they are in another one.

    Returns:
        The names of the first such group, such as 0.png, 1.png, 2.png, 10.png; or [].
    """
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(_NUMBER.sub("0", name), []).append(name)
    for group in groups.values():
        counted = sorted(group, key=lambda name: [int(n) for n in _NUMBER.findall(name)])
        if counted != group:
            return counted
    return []


def begins_with_image(line: str) -> bool:
    """Return True if a line of text begins with the name of an image, as `cat.png: a cat`."""
    return _is_image(_BEGIN.split(line.strip(), maxsplit=1)[0].strip(" \"'"))


def names_files(
    column: str, values: Sequence[object], places: Sequence[int | None], num_images: int
) -> bool:
    """Return True if a column says which file a row belongs to.

    That is so if its name is usual for files, if most values look like names of images, or if its
    values are distinct and name at least half of the images.

    Args:
        column: The column's name.
        values: Its values.
        places: The images that the values name, from `ImageNames.find`.
        num_images: The number of images.
    """
    if re.sub(r"[\W_]", "", column).lower() in _COLUMNS:
        return True
    if 2 * sum(map(_is_image, values)) > len(values):
        return True
    named = {place for place in places if place is not None}
    return len({*map(str, values)}) == len(values) and 2 * len(named) >= num_images


def _is_image(value: object) -> bool:
    if isinstance(value, list) and value:
        value = value[0]
    if isinstance(value, dict):
        value = value.get("path")
    return isinstance(value, str) and PurePosixPath(value.strip()).suffix.lower() in EXTENSIONS


def _parts(name: str) -> Parts:
    """Split a path; of Windows, too, and with one spelling of each accented letter."""
    return PurePosixPath(unicodedata.normalize("NFC", name).replace("\\", "/")).parts


def _add(places: dict, key: Hashable, place: int) -> None:
    """Store a place; None if another one has the same key."""
    places[key] = place if places.get(key, place) == place else None
