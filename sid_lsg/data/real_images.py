"""Real images with captions from a folder, for the optional adversarial term.

The folder has the layout of Hugging Face's `imagefolder`: images and a table such as
`metadata.jsonl` with the columns `file_name` and `text`. Alternatively every image has a text file
of the same name, such as `cat.png` and `cat.txt`. The n-th draw of a run is image n % N of
permutation n // N of the folder's N images, as for prompts. An image with several captions gets one
of them, drawn anew each time.
"""

import json
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from sid_lsg.data.captions import read_folder_captions
from sid_lsg.data.sequences import Packed
from sid_lsg.images.folder import READ_ERRORS, list_images
from sid_lsg.images.pixels import fitted
from sid_lsg.images.shown import as_shown
from sid_lsg.messages.errors import UsageError
from sid_lsg.method.randomness import permute, random_bits
from sid_lsg.teachers.base import Tokenize, Tokens

OPTION = "data.real_images"

_FIRST_EPOCH = 1 << 31  # first permutation; those of prompts count from 0
_CAPTION_STREAM = 0x60000000  # far from those of the training step and of permutations
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
        captions = read_folder_captions(paths, self._root, OPTION)
        # Packed, so that the loader's workers share the memory. JSON keeps names as they are.
        self.captions: Sequence[str] = Packed(chain.from_iterable(captions), folder)
        names = (json.dumps(str(path.relative_to(self._root))) for path in paths)
        self._names = Packed(names, folder)
        self._counts = torch.tensor([len(texts) for texts in captions])
        self._starts = self._counts.cumsum(0) - self._counts
        for path in paths[:: -(-len(paths) // _CHECKED)]:
            _open(path).close()

    def __len__(self) -> int:
        return len(self._names)

    def batch(
        self, first: int, share: int, seed: int, size: tuple[int, int], tokenize: Tokenize | None
    ) -> RealBatch:
        """Read consecutive draws of a run.

        Args:
            first: The number of the first draw, counted from the start of the run.
            share: The number of draws.
            seed: The seed of the order and of the choice among several captions.
            size: (H, W) to crop and resize images to.
            tokenize: Tokenizes captions; if None, the training process does.
        """
        n = first + torch.arange(share)
        places = permute(n % len(self), len(self), seed, _FIRST_EPOCH + n // len(self)).tolist()
        (bits,) = random_bits({_CAPTION_STREAM: 1}, n & 0xFFFFFFFF, 0, seed)
        chosen = self._starts[places] + ((bits[:, 0] * self._counts[places]) >> 32)
        captions = [self.captions[place] for place in chosen.tolist()]
        images = [self._read(self._root / json.loads(self._names[place]), size) for place in places]
        return RealBatch(torch.stack(images), captions, tokenize(captions) if tokenize else {})

    @staticmethod
    def _read(path: Path, size: tuple[int, int]) -> Tensor:
        with _open(path) as picture:
            try:
                return fitted(as_shown(picture), size)
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
