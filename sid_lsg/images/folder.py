"""Read images from a folder of files."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from sid_lsg.distributed.processes import gather
from sid_lsg.images.pixels import rgb
from sid_lsg.messages.errors import UsageError

EXTENSIONS = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm"}
READ_ERRORS = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)
_NAMED = 10  # maximum number of files in a message

# `generate` writes these beside its images: a sheet that shows them, and its settings.
SHEET, MANIFEST = "contact_sheet.png", "images.json"

# Files that commands draw from images, and the file beside them that identifies them. They do not
# count as images.
_DRAWN = {SHEET: MANIFEST, "samples.png": "report.json", "alignment.png": "report.json"}


def list_images(folder: str | Path, option: str) -> list[Path]:
    """List the images in a folder and its subfolders, sorted by path.

    The contact sheet of `generate` and the images of a report are left out.

    Raises:
        UsageError: If the folder does not exist or contains no image.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise UsageError(
            f"--{option}: there is no folder {str(folder)!r}. Give a folder of images."
        )
    paths = sorted(
        path
        for path in root.rglob("*")
        if path.suffix.lower() in EXTENSIONS and not _is_drawn(path)
    )
    if not paths:
        raise UsageError(
            f"--{option}: {str(folder)!r} contains no image ({', '.join(sorted(EXTENSIONS))})."
        )
    return paths


def _is_drawn(path: Path) -> bool:
    return path.name in _DRAWN and path.with_name(_DRAWN[path.name]).is_file()


def read_image(path: Path) -> Tensor:
    """Read an image as [3, H, W] uint8.

    Raises:
        Exception: One of `READ_ERRORS`.
    """
    with Image.open(path) as image:
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
            return read_image(path)
        except READ_ERRORS as error:
            self.unreadable.append((str(path), str(error).strip() or type(error).__name__))
            return None

    def check(self, option: str) -> None:
        """Raise an error if any process could not read an image.

        Raises:
            UsageError: If there are unreadable files; names up to ten of them.
        """
        bad = sorted(gather(self.unreadable))
        if not bad:
            return
        named = [f"{name} ({reason.removesuffix(repr(name)).strip()})" for name, reason in bad]
        more = f" and {len(bad) - _NAMED} more" if len(bad) > _NAMED else ""
        raise UsageError(
            f"--{option}: {len(bad)} of {len(self.paths)} images cannot be read: "
            f"{', '.join(named[:_NAMED])}{more}. Replace or remove them."
        )
