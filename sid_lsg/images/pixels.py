"""Convert between tensors and images, and draw grids, labelled tables and contact sheets."""

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
_PNG_LEVEL = 1  # of 9; a fifth of the time of Pillow's default 6, and files 15% larger


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


def rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to 8-bit RGB; drop transparency.

    Raises:
        ValueError: If the image has 32 bits per pixel, for which white is undefined.
    """
    if image.mode.startswith("I;16"):  # Pillow would clip at 255 instead of scaling
        grey = np.asarray(image).astype(np.uint32)
        image = Image.fromarray(((grey + 128) // 257).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError("it has 32 bits per pixel; only 8 and 16 are supported")
    return image.convert("RGB")


def fitted(image: Image.Image, size: tuple[int, int]) -> Tensor:
    """Crop an image at the centre to the aspect ratio of (H, W), and resize it with LANCZOS.

    Returns:
        [3, H, W] uint8. An image of this size is returned unchanged.

    Raises:
        ValueError: If `rgb` does not support the image.
    """
    cropped = ImageOps.fit(rgb(image), size[::-1], Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(cropped)).permute(2, 0, 1)


def to_pil(images: Tensor) -> list[Image.Image]:
    """Convert images [B, 3, H, W] in [-1, 1] to PIL images."""
    return [
        Image.fromarray(pixels) for pixels in to_uint8(images).permute(0, 2, 3, 1).cpu().numpy()
    ]


def comparison(rows: dict[str, Tensor], captions: Sequence[str], tile: int = 112) -> Image.Image:
    """Draw images of several samplers for the same prompts, one labelled row per sampler.

    Args:
        rows: Maps a sampler's name to its images [B, 3, H, W] in [-1, 1].
        captions: B prompts, written below the columns.
        tile: Minimum side of a drawn image; smaller images are enlarged by an integer factor.
    """
    tiles = {name: [_enlarge(image, tile) for image in to_pil(i)] for name, i in rows.items()}
    width, height = next(iter(tiles.values()))[0].size
    texts = [textwrap.fill(caption, max(8, width // 7)) for caption in captions]
    below = _LINE * (1 + max(text.count("\n") for text in texts)) + _MARGIN
    label = 130
    across, down = width + _MARGIN, height + _MARGIN
    size = label + len(captions) * across + _MARGIN, len(rows) * down + _MARGIN + below
    canvas = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(canvas)
    for row, (name, images) in enumerate(tiles.items()):
        top = _MARGIN + row * down
        draw.multiline_text((_MARGIN, top + height // 3), name, "black", _FONT)
        for column, image in enumerate(images):
            canvas.paste(image, (label + column * across, top))
    for column, text in enumerate(texts):
        where = label + column * across, _MARGIN + len(rows) * down
        draw.multiline_text(where, text, "black", _FONT)
    return canvas


def grid(images: Tensor, tile: int = 64) -> Image.Image:
    """Draw images [B, 3, H, W] in [-1, 1] in a nearly square grid."""
    tiles = [_enlarge(image, tile) for image in to_pil(images)]
    columns = math.ceil(math.sqrt(len(tiles)))
    width, height = tiles[0].width + 2, tiles[0].height + 2
    rows = math.ceil(len(tiles) / columns)
    canvas = Image.new("RGB", (columns * width, rows * height), "white")
    for index, image in enumerate(tiles):
        canvas.paste(image, (index % columns * width, index // columns * height))
    return canvas


def contact_sheet(
    images: Sequence[Image.Image],
    captions: Sequence[str],
    columns: int | None = None,
    tile: int = 160,
) -> Image.Image:
    """Draw images with their captions in rows.

    Args:
        images: Images of one size.
        captions: Text below each image, at most three lines.
        columns: Images per row; by default the sheet is nearly square.
        tile: Approximate side of a drawn image; smaller images are enlarged by an integer factor.
    """
    columns = columns or math.ceil(math.sqrt(len(images)))
    small = images[0].width < tile
    tiles = [_enlarge(i, tile) if small else ImageOps.contain(i, (tile, tile)) for i in images]
    width, height = tiles[0].width + _MARGIN, tiles[0].height + 3 * _LINE + _MARGIN
    rows = math.ceil(len(tiles) / columns)
    sheet = Image.new("RGB", (columns * width + _MARGIN, rows * height + _MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    for index, (image, caption) in enumerate(zip(tiles, captions, strict=True)):
        left, top = index % columns * width + _MARGIN, index // columns * height + _MARGIN
        sheet.paste(image, (left, top))
        lines = textwrap.wrap(caption, max(8, image.width // 7), max_lines=3, placeholder="...")
        draw.multiline_text((left, top + image.height), "\n".join(lines), "black", _FONT)
    return sheet


def save_png(image: Image.Image, path: Path, about: PngInfo | None = None) -> None:
    """Write a PNG file with optional text metadata; a failed write leaves no partial file."""
    with replacing(path) as temporary:
        image.save(temporary, format="PNG", pnginfo=about, compress_level=_PNG_LEVEL)


def _enlarge(image: Image.Image, tile: int) -> Image.Image:
    """Enlarge an image by an integer factor to a width of at least `tile`."""
    factor = math.ceil(tile / image.width)
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
