"""Images as pixels, and many of them as one labelled picture."""

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from sid_lsg.files.replacing import replacing

_MARGIN, _FONT = 6, ImageFont.load_default(size=12)
_LINE = 16


def to_uint8(images: Tensor) -> Tensor:
    """Round images in [-1, 1] to 8 bits: rint((x + 1) * 127.5), clipped to 0..255.

    Args:
        images: [B, 3, H, W] float.

    Returns:
        [B, 3, H, W] uint8 on the device of `images`.
    """
    return ((images.float() + 1.0) * 127.5).round().clamp(0, 255).byte()


def from_uint8(images: Tensor) -> Tensor:
    """Undo `to_uint8`: [-1, 1] float32."""
    return images.float() / 127.5 - 1.0


def rgb(picture: Image.Image) -> Image.Image:
    """Make a picture of any kind one of 8 bits per channel in RGB; transparency is left out.

    Raises:
        ValueError: If it is grey in 32 bits, which do not say what is white.
    """
    if picture.mode.startswith("I;16"):  # Pillow would take all from 255 on for white
        grey = np.asarray(picture).astype(np.uint32)
        picture = Image.fromarray(((grey + 128) // 257).astype(np.uint8))
    elif picture.mode in ("I", "F"):
        raise ValueError("it has 32 bits per pixel; 8 or 16 can be read")
    return picture.convert("RGB")


def fitted(picture: Image.Image, size: tuple[int, int]) -> Tensor:
    """Crop a picture about its centre to the shape of (H, W) and resize it, by LANCZOS.

    Returns:
        [3, H, W] uint8; of a picture of that size its own pixels.

    Raises:
        ValueError: As `rgb`.
    """
    whole = ImageOps.fit(rgb(picture), size[::-1], Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(whole)).permute(2, 0, 1)


def to_pil(images: Tensor) -> list[Image.Image]:
    """Make a PIL image of each of [B, 3, H, W] in [-1, 1]."""
    return [
        Image.fromarray(pixels) for pixels in to_uint8(images).permute(0, 2, 3, 1).cpu().numpy()
    ]


def comparison(rows: dict[str, Tensor], captions: Sequence[str], tile: int = 112) -> Image.Image:
    """Show several samplers' images of the same prompts, one labelled row each.

    Args:
        rows: Name of a sampler to its images [B, 3, H, W] in [-1, 1].
        captions: B prompts, written under the columns.
        tile: Least side of an image in the picture; small ones are enlarged by a whole factor.
    """
    pictures = {name: [_enlarge(image, tile) for image in to_pil(i)] for name, i in rows.items()}
    width, height = next(iter(pictures.values()))[0].size
    texts = [textwrap.fill(caption, max(8, width // 7)) for caption in captions]
    below = _LINE * (1 + max(text.count("\n") for text in texts)) + _MARGIN
    label = 130
    across, down = width + _MARGIN, height + _MARGIN
    size = label + len(captions) * across + _MARGIN, len(rows) * down + _MARGIN + below
    canvas = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(canvas)
    for row, (name, images) in enumerate(pictures.items()):
        top = _MARGIN + row * down
        draw.multiline_text((_MARGIN, top + height // 3), name, "black", _FONT)
        for column, image in enumerate(images):
            canvas.paste(image, (label + column * across, top))
    for column, text in enumerate(texts):
        where = label + column * across, _MARGIN + len(rows) * down
        draw.multiline_text(where, text, "black", _FONT)
    return canvas


def grid(images: Tensor, tile: int = 64) -> Image.Image:
    """Lay out images [B, 3, H, W] in [-1, 1] as close to a square as they fill."""
    tiles = [_enlarge(image, tile) for image in to_pil(images)]
    columns = math.ceil(math.sqrt(len(tiles)))
    width, height = tiles[0].width + 2, tiles[0].height + 2
    rows = math.ceil(len(tiles) / columns)
    canvas = Image.new("RGB", (columns * width, rows * height), "white")
    for index, image in enumerate(tiles):
        canvas.paste(image, (index % columns * width, index // columns * height))
    return canvas


def contact_sheet(
    pictures: Sequence[Image.Image],
    captions: Sequence[str],
    columns: int | None = None,
    tile: int = 160,
) -> Image.Image:
    """Show pictures with their captions, in rows.

    Args:
        pictures: Of one size.
        captions: What to write below each, in at most three lines.
        columns: How many in a row; by default as many as make it nearly square.
        tile: Side of a picture on the sheet, about: small ones are enlarged by a whole factor.
    """
    columns = columns or math.ceil(math.sqrt(len(pictures)))
    small = pictures[0].width < tile
    tiles = [_enlarge(p, tile) if small else ImageOps.contain(p, (tile, tile)) for p in pictures]
    width, height = tiles[0].width + _MARGIN, tiles[0].height + 3 * _LINE + _MARGIN
    rows = math.ceil(len(tiles) / columns)
    sheet = Image.new("RGB", (columns * width + _MARGIN, rows * height + _MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    for index, (picture, caption) in enumerate(zip(tiles, captions, strict=True)):
        left, top = index % columns * width + _MARGIN, index // columns * height + _MARGIN
        sheet.paste(picture, (left, top))
        lines = textwrap.wrap(caption, max(8, picture.width // 7), max_lines=3, placeholder="...")
        draw.multiline_text((left, top + picture.height), "\n".join(lines), "black", _FONT)
    return sheet


def save_png(picture: Image.Image, path: Path, about: PngInfo | None = None) -> None:
    """Write a picture with what is known about it: a whole file or none."""
    with replacing(path) as temporary:
        picture.save(temporary, format="PNG", pnginfo=about)


def _enlarge(image: Image.Image, tile: int) -> Image.Image:
    """Repeat pixels until the image is at least `tile` wide."""
    factor = math.ceil(tile / image.width)
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
