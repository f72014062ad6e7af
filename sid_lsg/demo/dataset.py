"""The `fashion` dataset: coloured Fashion-MNIST photographs on backgrounds, with captions.

Ten garments in eight colours on four backgrounds make 320 captions such as "an orange ankle boot on
a navy background". Fashion-MNIST (Xiao, Rasul and Vollgraf, 2017; MIT licence) is read from its
four IDX files, as Debian's package `dataset-fashion-mnist` installs them.
"""

import gzip
import itertools
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sid_lsg.messages.errors import UsageError

GARMENTS = (
    "t-shirt", "pair of trousers", "pullover", "dress", "coat",
    "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip
COLOURS = {
    "red": (0.90, 0.14, 0.14), "orange": (1.00, 0.55, 0.10), "yellow": (1.00, 0.87, 0.20),
    "green": (0.20, 0.70, 0.27), "blue": (0.20, 0.45, 0.95), "purple": (0.60, 0.28, 0.80),
    "pink": (1.00, 0.55, 0.75), "white": (0.97, 0.97, 0.97),
}  # fmt: skip
BACKGROUNDS = {
    "black": (0.05, 0.05, 0.05), "navy": (0.08, 0.12, 0.32),
    "gray": (0.50, 0.50, 0.50), "beige": (0.89, 0.82, 0.69),
}  # fmt: skip
HELD_OUT_COLOURS = {
    "brown": (0.45, 0.25, 0.10), "teal": (0.00, 0.50, 0.50), "olive": (0.50, 0.50, 0.10),
    "crimson": (0.70, 0.05, 0.25), "lime": (0.60, 0.95, 0.30), "cyan": (0.30, 0.90, 0.95),
    "lavender": (0.75, 0.65, 0.95), "salmon": (0.98, 0.60, 0.50),
}  # fmt: skip
HELD_OUT_BACKGROUNDS = {
    "brown": (0.30, 0.18, 0.10), "teal": (0.05, 0.32, 0.32),
    "silver": (0.72, 0.72, 0.75), "mint": (0.70, 0.90, 0.78),
}  # fmt: skip
COMBINATIONS = tuple(itertools.product(range(len(GARMENTS)), range(len(COLOURS)), range(4)))
SIZE = 32
DATA_DIR = "/usr/share/datasets/fashion-mnist"  # of Debian's package


class Palette(NamedTuple):
    """Eight colours of garments and four of backgrounds: RGB in [0, 1] by name."""

    garments: dict[str, tuple[float, float, float]]
    backgrounds: dict[str, tuple[float, float, float]]

    def caption(self, garment: int, colour: int, background: int) -> str:
        """Return the caption of an image: "an orange ankle boot on a navy background"."""
        name, ground = [*self.garments][colour], [*self.backgrounds][background]
        article = "an" if name[0] in "aeiou" else "a"
        return f"{article} {name} {GARMENTS[garment]} on a {ground} background"

    def captions(self) -> tuple[str, ...]:
        """Return the captions of all images, in the order of `COMBINATIONS`."""
        return tuple(self.caption(*combination) for combination in COMBINATIONS)


TRAINED = Palette(COLOURS, BACKGROUNDS)
CAPTIONS = TRAINED.captions()


class Photographs(NamedTuple):
    """Grey photographs of garments: `grey` and `mask` [N, 32, 32] uint8, `labels` [N] int64."""

    grey: Tensor
    mask: Tensor
    labels: Tensor


def _read_idx(path: Path) -> np.ndarray:
    """Read an IDX file of unsigned bytes, plain or gzip-compressed."""
    found = next((p for p in (path, path.with_suffix(".gz")) if p.is_file()), None)
    if found is None:
        raise UsageError(
            f"--data_dir: {path}(.gz) not found. Install Debian's package `dataset-fashion-mnist`, "
            "or download Fashion-MNIST's four IDX files and give their folder."
        )
    data = gzip.decompress(found.read_bytes()) if found.suffix == ".gz" else found.read_bytes()
    if data[:3] != b"\0\0\x08":
        raise UsageError(f"--data_dir: {found} is not an IDX file of unsigned bytes.")
    shape = np.frombuffer(data, ">i4", count=data[3], offset=4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * data[3]).reshape(shape)


def _silhouette(grey: Tensor) -> Tensor:
    """Return a mask of the garment, including dark areas that it encloses.

    Args:
        grey: [N, H, W] in [0, 1].

    Returns:
        [N, H, W] in [0, 1], soft at the garment's edge.
    """
    dark = (grey < 0.04).float()[:, None]
    outside = F.pad(torch.zeros_like(dark[..., 1:-1, 1:-1]), (1, 1, 1, 1), value=1.0) * dark
    for _ in range(2 * SIZE):  # flood-fill the black background from the border
        grown = torch.maximum(
            F.max_pool2d(outside, (3, 1), 1, (1, 0)), F.max_pool2d(outside, (1, 3), 1, (0, 1))
        )
        outside = grown * dark
    inside = 1.0 - outside
    edge = (grey / 0.25).clamp(max=1.0)[:, None]
    interior = -F.max_pool2d(-inside, 3, 1, 1)  # pixels with no outside neighbour are solid
    return torch.maximum(edge * inside, interior)[:, 0]


def load_photographs(data_dir: str | Path, split: str) -> Photographs:
    """Load one split of Fashion-MNIST and compute the garments' silhouettes.

    Args:
        data_dir: Folder with the IDX files.
        split: "train" (60,000 images) or "t10k" (10,000).

    Raises:
        UsageError: If a file is missing or is not an IDX file.
    """
    images = _read_idx(Path(data_dir) / f"{split}-images-idx3-ubyte")
    labels = _read_idx(Path(data_dir) / f"{split}-labels-idx1-ubyte")
    grey = F.pad(torch.from_numpy(images.copy()), (2, 2, 2, 2))
    mask = torch.cat([_silhouette(part.float() / 255) for part in grey.split(4096)])
    return Photographs(grey, (mask * 255).round().byte(), torch.from_numpy(labels.copy()).long())


def compose(
    photographs: Photographs, colours: Tensor, backgrounds: Tensor, palette: Palette = TRAINED
) -> Tensor:
    """Colour photographs and put them on backgrounds.

    The photograph's grey scales the garment's colour from 25% to 100% brightness.

    Args:
        photographs: N of them.
        colours: [N] int64, indices into the palette's garments.
        backgrounds: [N] int64, indices into the palette's backgrounds.
        palette: The colours.

    Returns:
        [N, 3, 32, 32] float32 in [-1, 1].
    """
    grey = photographs.grey.float()[:, None] / 255
    mask = photographs.mask.float()[:, None] / 255
    colour = torch.tensor([*palette.garments.values()])[colours, :, None, None]
    background = torch.tensor([*palette.backgrounds.values()])[backgrounds, :, None, None]
    return (mask * (0.25 + 0.75 * grey) * colour + (1 - mask) * background) * 2 - 1


def moved(photographs: Photographs, generator: torch.Generator, most: int = 4) -> Photographs:
    """Move each garment by up to `most` pixels in both directions; the margin is background."""
    grey, mask = (F.pad(field, (most,) * 4) for field in photographs[:2])
    places = torch.randint(2 * most + 1, (len(grey), 2), generator=generator).tolist()

    def cut(field: Tensor) -> Tensor:
        return torch.stack(
            [image[y : y + SIZE, x : x + SIZE] for image, (y, x) in zip(field, places, strict=True)]
        )

    return photographs._replace(grey=cut(grey), mask=cut(mask))


def scaled(photographs: Photographs, side: int = 24) -> Photographs:
    """Scale each photograph to `side` pixels and centre it; the margin is background."""
    margin = (SIZE - side) // 2

    def small(field: Tensor) -> Tensor:
        resized = F.interpolate(field[:, None].float(), size=(side, side), mode="area")
        return F.pad(resized[:, 0].round().byte(), (margin, SIZE - side - margin) * 2)

    return photographs._replace(grey=small(photographs.grey), mask=small(photographs.mask))


def draw(
    photographs: Photographs,
    index: Tensor,
    generator: torch.Generator,
    palette: Palette = TRAINED,
) -> tuple[Tensor, Tensor]:
    """Compose the photographs at `index` with random colours and backgrounds.

    Returns:
        Images [N, 3, 32, 32] float32 in [-1, 1], and [N] int64 indices into the palette's captions.
    """
    chosen = Photographs(*(field[index] for field in photographs))
    colours = torch.randint(len(COLOURS), index.shape, generator=generator)
    backgrounds = torch.randint(len(BACKGROUNDS), index.shape, generator=generator)
    images = compose(chosen, colours, backgrounds, palette)
    captions = (chosen.labels * len(COLOURS) + colours) * len(BACKGROUNDS) + backgrounds
    return images, captions
