"""Read images from a folder of files."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from sid_lsg.distributed.processes import gather
from sid_lsg.images.pixels import rgb
from sid_lsg.images.shown import looks_different
from sid_lsg.messages.errors import UsageError

EXTENSIONS = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm"}
READ_ERRORS = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)
_NAMED = 10  # maximum number of files in a message

# `generate` writes these beside its images: a sheet that shows them, and its settings.
SHEET, MANIFEST = "contact_sheet.png", "images.json"
CAPTIONS = "metadata.jsonl"  # of its images, as Hugging Face's `imagefolder` format names it

# Files that commands draw from images, and the file beside them that identifies them. They do not
# count as images.
_DRAWN = {SHEET: MANIFEST, "samples.png": "report.json", "alignment.png": "report.json"}

# What commands write beside them.
_ABOUT = {MANIFEST, "images.npz", "images.csv"} | {
    f"report.{kind}" for kind in ("json", "md", "csv", "html")
}
_PREVIEWS = {"@eaDir", "__MACOSX", "$RECYCLE.BIN"}  # folders that systems make


def list_images(folder: str | Path, option: str) -> list[Path]:
    """List the images in a folder and its subfolders, sorted by path.

    Links are followed. Hidden files and folders are left out: names that begin with a dot, such as
    `.ipynb_checkpoints` and `._0.png`, and folders of previews such as `@eaDir`. The contact sheet
    of `generate` and the images of a report are left out, too. Other kinds of files are counted and
    named in the log.

    Raises:
        UsageError: If the folder does not exist or contains no image.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise UsageError(
            f"--{option}: there is no folder {str(folder)!r}. Give a folder of images."
        )
    visible, hidden = _files(root, option)
    images = {path for path in visible if _is_image(path) and (path.is_file() or path.is_symlink())}
    if lost := sorted(path for path in images if not path.exists()):
        raise UsageError(
            f"--{option}: {len(lost)} links in {str(folder)!r} lead nowhere, such as "
            f"{str(lost[0])!r}. Restore what they link to, or remove them."
        )
    left_out = _left_out([path for path in visible if path not in images], images, hidden)
    paths = sorted(path for path in images if not _is_drawn(path))
    if not paths:
        found = f" It holds {left_out}." if left_out else ""
        raise UsageError(
            f"--{option}: {str(folder)!r} contains no image ({', '.join(sorted(EXTENSIONS))})."
            f"{found}"
        )
    if left_out:
        rank_zero_info(f"{len(paths):,} images in {folder}; not used: {left_out}.")
    return paths


def _files(root: Path, option: str) -> tuple[list[Path], int]:
    """Find all files but hidden ones, and count the hidden images; visit each folder once."""

    def refuse(error: OSError) -> None:
        raise UsageError(
            f"--{option}: cannot read the folder {error.filename!r}: {error.strerror}."
        )

    found, hidden = [], 0
    seen = {root.resolve()}
    for parent, folders, files in os.walk(root, onerror=refuse, followlinks=True):
        inside = Path(parent)
        kept = []
        for name in folders:
            target = (inside / name).resolve()
            if is_hidden(name):
                hidden += sum(_is_image(path) and path.is_file() for path in target.rglob("*"))
            elif target not in seen:  # links may lead back
                kept.append(name)
                seen.add(target)
        folders[:] = kept
        for name in files:
            if not is_hidden(name):
                found.append(inside / name)
            elif _is_image(Path(name)):
                hidden += 1
    return found, hidden


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in EXTENSIONS


def is_hidden(name: str) -> bool:
    """Return True if a file or folder of this name is left out."""
    return name.startswith(".") or name in _PREVIEWS


def _left_out(others: Sequence[Path], images: set[Path], hidden: int) -> str:
    """Name the kinds of files that are neither images nor about them."""
    stems = {path.with_suffix("") for path in images}
    kinds: dict[str, list[str]] = {}
    for path in others:
        is_caption = path.suffix.lower() == ".txt" and path.with_suffix("") in stems
        if not is_caption and path.name not in _ABOUT and path.stem.lower() != "metadata":
            kinds.setdefault(path.suffix.lower() or "no suffix", []).append(path.name)
    parts = [f"{len(n):,} {kind} (such as {min(n)})" for kind, n in sorted(kinds.items())]
    if hidden:
        parts.append(f"{hidden:,} hidden images")
    return ", ".join(parts)


def _is_drawn(path: Path) -> bool:
    return path.name in _DRAWN and path.with_name(_DRAWN[path.name]).is_file()


def read_image(path: Path) -> Tensor:
    """Read an image as [3, H, W] uint8, as the published protocols of scores do.

    Only the pixels count: EXIF orientation, colour profile and transparency are ignored.

    Raises:
        Exception: One of `READ_ERRORS`.
    """
    with Image.open(path) as image:
        return _pixels(image)


def _pixels(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(rgb(image))).permute(2, 0, 1)


class ImageReader:
    """Prefetch images in threads, and record files that cannot be read.

    Attributes:
        unreadable: Pairs of a file and the reason.
    """

    def __init__(self, paths: Sequence[Path], workers: int = 8) -> None:
        """Read the given files with `workers` threads."""
        self.paths = paths
        self.workers = workers
        self.unreadable: list[tuple[str, str]] = []
        self._changed: list[str] = []

    def read(
        self, chunks: Sequence[range], progress: str | None = None
    ) -> Iterator[tuple[list[int], list[Tensor]]]:
        """Yield for each range of indices those that could be read, and their images [3, H, W].

        Ranges without a readable image are skipped. `progress` is the label of a progress bar;
        None shows none.
        """
        bar = tqdm(chunks, progress, disable=progress is None, leave=False)
        with ThreadPoolExecutor(self.workers) as pool:

            def submit(chunk: range) -> list[Future[Tensor | None]]:
                return [pool.submit(self._read, self.paths[place]) for place in chunk]

            pending = [submit(chunk) for chunk in chunks[:1]]
            for number, chunk in enumerate(bar):
                results = pending.pop()
                pending = [submit(following) for following in chunks[number + 1 : number + 2]]
                images = {i: result.result() for i, result in zip(chunk, results, strict=True)}
                read = {i: image for i, image in images.items() if image is not None}
                if read:
                    yield list(read), list(read.values())

    def _read(self, path: Path) -> Tensor | None:
        try:
            with Image.open(path) as image:
                if looks_different(image):
                    self._changed.append(str(path))
                return _pixels(image)
        except READ_ERRORS as error:
            self.unreadable.append((str(path), str(error).strip() or type(error).__name__))
            return None

    def check(self, option: str) -> None:
        """Raise an error if any process could not read an image.

        Logs how many images viewers show otherwise than scores read them.

        Raises:
            UsageError: If there are unreadable files; names up to ten of them.
        """
        bad = sorted(gather(self.unreadable))
        if not bad:
            if changed := sorted(gather(self._changed)):
                rank_zero_info(
                    f"{len(changed):,} of {len(self.paths):,} images of --{option} have an EXIF "
                    f"orientation or an alpha channel, such as {changed[0]}. As in the published "
                    "protocols, scores ignore both."
                )
            return
        named = [f"{name} ({reason.removesuffix(repr(name)).strip()})" for name, reason in bad]
        more = f" and {len(bad) - _NAMED} more" if len(bad) > _NAMED else ""
        raise UsageError(
            f"--{option}: {len(bad)} of {len(self.paths)} images cannot be read: "
            f"{', '.join(named[:_NAMED])}{more}. Replace or remove them."
        )
