"""Images of any origin, from a folder of files."""

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
_NAMED = 10  # at most so many files in a message

# What `generate` writes beside its images: a page that shows them, and what it was asked for.
SHEET, MANIFEST = "contact_sheet.png", "images.json"

# Pages that commands make of images, by what then lies beside them: they are none of the images.
_PAGES = {SHEET: MANIFEST, "samples.png": "report.json", "alignment.png": "report.json"}


def list_images(folder: str | Path, option: str) -> list[Path]:
    """List a folder's images, with those of its subfolders, in the order of their paths.

    The contact sheet of a `generate`, and the pictures of a report, are not among them.

    Raises:
        UsageError: If it is no folder or holds no image.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise UsageError(f"--{option}: there is no folder {str(folder)!r}. Give one of images.")
    paths = sorted(
        path for path in root.rglob("*") if path.suffix.lower() in EXTENSIONS and not _is_page(path)
    )
    if not paths:
        raise UsageError(
            f"--{option}: {str(folder)!r} holds no image ({', '.join(sorted(EXTENSIONS))})."
        )
    return paths


def _is_page(path: Path) -> bool:
    return path.name in _PAGES and path.with_name(_PAGES[path.name]).is_file()


def read_image(path: Path) -> Tensor:
    """Read an image: [3, H, W] uint8.

    Raises:
        Exception: One of `READ_ERRORS`.
    """
    with Image.open(path) as image:
        return torch.from_numpy(np.array(rgb(image))).permute(2, 0, 1)


class ImageReader:
    """Read images ahead of their use, in threads; remember which could not be read.

    Attributes:
        unreadable: Files, with what was wrong.
    """

    def __init__(self, paths: Sequence[Path], workers: int = 8) -> None:
        """Take the images' files, and how many threads may read them."""
        self.paths = paths
        self.workers = workers
        self.unreadable: list[tuple[str, str]] = []

    def read(
        self, chunks: Sequence[range], progress: str | None = None
    ) -> Iterator[tuple[list[int], list[Tensor]]]:
        """Yield, for each range of places in the paths, those read and their images [3, H, W].

        A range of which none could be read is passed over. `progress` names a progress bar.
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
        """Refuse what any process could not read, by name.

        Raises:
            UsageError: If there was any.
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
