"""Real images with captions from a folder, for the optional adversarial term.

The folder has the layout of Hugging Face's `imagefolder`: images and a `metadata.jsonl` or
`metadata.csv` with the columns `file_name` and `text`. Alternatively every image has a text file of
the same name, such as `cat.png` and `cat.txt`. The n-th draw of a run is image n % N of permutation
n // N of the folder's N images, as for prompts.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from sid_lsg.data.captions import read_captions
from sid_lsg.data.sequences import Packed
from sid_lsg.images.folder import READ_ERRORS, list_images
from sid_lsg.images.pixels import fitted
from sid_lsg.messages.errors import UsageError
from sid_lsg.method.randomness import permute
from sid_lsg.teachers.base import Tokenize, Tokens

OPTION = "data.real_images"
METADATA = ("metadata.jsonl", "metadata.csv")

_FIRST_EPOCH = 1 << 31  # first permutation; those of prompts count from 0
_CHECKED = 1000  # images to open at the start, at most, evenly spaced


class RealBatch(NamedTuple):
    """One rank's real images for one iteration: [B, 3, H, W] uint8, captions and tokens."""

    images: Tensor
    captions: list[str]
    tokens: Tokens

    def select(self, part: slice) -> "RealBatch":
        """Select some of the images."""
        tokens = {name: value[part] for name, value in self.tokens.items()}
        return RealBatch(self.images[part], self.captions[part], tokens)


def join(batches: Sequence[RealBatch]) -> RealBatch:
    """Join batches of real images, in order."""
    images, captions, tokens = zip(*batches, strict=True)
    return RealBatch(
        torch.cat(images),
        [caption for own in captions for caption in own],
        {name: torch.cat([own[name] for own in tokens]) for name in tokens[0]},
    )


class RealImages:
    """Images and captions of a folder; an image is read when it is accessed.

    Args:
        folder: The folder.

    Raises:
        UsageError: If there is no such folder, images and captions do not match, or an image
            cannot be read.
    """

    def __init__(self, folder: str) -> None:
        self._root = Path(folder).expanduser()
        paths = list_images(folder, OPTION)
        # Packed, so that the loader's workers share the memory.
        self.captions: Sequence[str] = Packed(self._captions(paths), folder)
        self._names = Packed([str(path.relative_to(self._root)) for path in paths], folder)
        for path in paths[:: -(-len(paths) // _CHECKED)]:
            _open(path).close()

    def _captions(self, paths: Sequence[Path]) -> list[str]:
        for name in METADATA:
            if (self._root / name).is_file():
                return read_captions(str(self._root / name), None, paths, self._root, OPTION)
        try:
            captions = [path.with_suffix(".txt").read_text("utf-8").strip() for path in paths]
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(
                f"--{OPTION}: {str(self._root)!r} has no captions: neither {METADATA[0]} nor "
                f"{METADATA[1]} with the columns file_name and text, nor a text file for every "
                f"image ({error}). Add one of them."
            ) from error
        if "" in captions:
            path = paths[captions.index("")].with_suffix(".txt")
            raise UsageError(f"--{OPTION}: {str(path)!r} is blank. Every image needs a caption.")
        return captions

    def __len__(self) -> int:
        return len(self._names)

    def batch(
        self, first: int, share: int, seed: int, size: tuple[int, int], tokenize: Tokenize | None
    ) -> RealBatch:
        """Read consecutive draws of a run.

        Args:
            first: The number of the first draw, counted from the start of the run.
            share: The number of draws.
            seed: The seed of the order.
            size: (H, W) to crop and resize images to.
            tokenize: Tokenizes captions; if None, the training process does.
        """
        n = first + torch.arange(share)
        places = permute(n % len(self), len(self), seed, _FIRST_EPOCH + n // len(self)).tolist()
        captions = [self.captions[place] for place in places]
        images = [self._read(self._root / self._names[place], size) for place in places]
        return RealBatch(torch.stack(images), captions, tokenize(captions) if tokenize else {})

    @staticmethod
    def _read(path: Path, size: tuple[int, int]) -> Tensor:
        with _open(path) as picture:
            try:
                return fitted(picture, size)
            except READ_ERRORS as error:  # for example a truncated file
                raise _unreadable(path, error) from error


def _open(path: Path) -> Image.Image:
    """Open an image, reading only its header."""
    try:
        return Image.open(path)
    except READ_ERRORS as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> UsageError:
    return UsageError(
        f"--{OPTION}: {str(path)!r} cannot be read as an image ({error}). Replace it, or remove it "
        "and its caption."
    )
