"""Rounding equals numpy's, drawn images have the right layout, and PNG files are complete."""

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from sid_lsg.images.pixels import (
    comparison,
    contact_sheet,
    fitted,
    grid,
    rgb,
    save_png,
    to_pil,
    to_uint8,
)


def noise(batch: int, side: int = 8, width: int | None = None) -> Tensor:
    generator = torch.Generator().manual_seed(batch)
    return torch.rand(batch, 3, side, width or side, generator=generator) * 2 - 1


def pixels(image: Image.Image) -> NDArray[Any]:
    assert image.mode == "RGB"
    return np.asarray(image)


@pytest.mark.parametrize(
    ("value", "expected"),
    [(-1, 0), (1, 255), (0, 128), (-3, 0), (7, 255), (-1 + 1 / 127.5, 1), (1 - 1 / 127.5, 254)],
)
def test_known_values(value: float, expected: int) -> None:
    assert to_uint8(torch.full((1, 3, 1, 1), float(value))).unique().tolist() == [expected]


def test_rounding_and_clipping_equal_numpy() -> None:
    x = torch.linspace(-1.3, 1.3, 3 * 4096).view(1, 3, 64, 64)
    rounded = to_uint8(x)
    assert rounded.dtype == torch.uint8
    expected = np.clip(np.rint((x.numpy() + np.float32(1)) * np.float32(127.5)), 0, 255)
    np.testing.assert_array_equal(rounded, expected)
    assert set(rounded.unique().tolist()) == set(range(256))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_rounded_once(dtype: torch.dtype) -> None:
    x = noise(2).to(dtype)
    expected = np.rint((x.double().numpy() + 1) * 127.5)
    assert np.abs(to_uint8(x).numpy() - expected).max() == 0


def test_pil_images_keep_channels_rows_and_columns() -> None:
    x = -torch.ones(2, 3, 2, 3)
    x[0, 0, 0, 2] = 1  # red, first row, last column
    x[1, 2, 1, 0] = 1  # blue, second row, first column
    first, second = to_pil(x)
    assert first.size == second.size == (3, 2)
    assert first.getpixel((2, 0)) == (255, 0, 0)
    assert second.getpixel((0, 1)) == (0, 0, 255)
    assert int(pixels(first).sum()) == int(pixels(second).sum()) == 255


@pytest.mark.parametrize("batch", [1, 2, 3, 4, 5, 7, 9, 12])
def test_a_grid_is_nearly_square_and_shows_every_image_once(batch: int) -> None:
    x = noise(batch)
    shown = pixels(grid(x, tile=20)).copy()  # 8 pixels are enlarged to 24
    columns = math.ceil(math.sqrt(batch))
    rows = math.ceil(batch / columns)
    assert shown.shape == (rows * 26, columns * 26, 3)
    for index, image in enumerate(to_uint8(x).permute(0, 2, 3, 1).numpy()):
        top, left = 26 * (index // columns), 26 * (index % columns)
        tile = shown[top : top + 24, left : left + 24]
        np.testing.assert_array_equal(tile, image.repeat(3, axis=0).repeat(3, axis=1))
        tile[:] = 255
    assert (shown == 255).all()  # nothing else is drawn


@pytest.mark.parametrize(("height", "width"), [(8, 24), (24, 8)])
def test_non_square_images_are_shown_completely(height: int, width: int) -> None:
    x = noise(4, height, width)
    images = [np.asarray(image) for image in to_pil(x)]
    tiled = pixels(grid(x, tile=width))
    assert tiled.shape == (2 * (height + 2), 2 * (width + 2), 3)
    for index, image in enumerate(images):
        top, left = (height + 2) * (index // 2), (width + 2) * (index % 2)
        np.testing.assert_array_equal(tiled[top : top + height, left : left + width], image)
    table = pixels(comparison({"first": x[:2], "second": x[2:]}, ["a", "b"], tile=width))
    windows = np.lib.stride_tricks.sliding_window_view(table, (height, width, 3))[:, :, 0]
    for image in images:
        assert (windows == image).all(axis=(2, 3, 4)).sum() == 1


@pytest.mark.parametrize("kind", ["png", "tiff"])
def test_16_bit_grey_is_rounded_to_8_bits(kind: str, tmp_path: Path) -> None:
    """Pillow would turn all values from 255 into white."""
    ramp = np.linspace(0, 65535, 64 * 64).round().astype(np.uint16).reshape(64, 64)
    Image.fromarray(ramp).save(tmp_path / f"ramp.{kind}")
    expected = np.rint(ramp / 257).astype(np.uint8)
    with Image.open(tmp_path / f"ramp.{kind}") as image:
        np.testing.assert_array_equal(pixels(rgb(image)), expected[..., None].repeat(3, axis=2))
        found = fitted(image, (64, 64)).permute(1, 2, 0)
    np.testing.assert_array_equal(found, expected[..., None].repeat(3, axis=2))


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_32_bit_grey_is_rejected(dtype: Any) -> None:
    with pytest.raises(ValueError, match="32 bits per pixel"):
        rgb(Image.fromarray(np.zeros((4, 4), dtype)))


def test_large_images_are_not_enlarged() -> None:
    x = noise(1, side=70)
    np.testing.assert_array_equal(
        pixels(grid(x))[:70, :70], to_uint8(x)[0].permute(1, 2, 0).numpy()
    )


def box(shown: NDArray[Any], colour: NDArray[Any]) -> tuple[int, int, int, int]:
    """Return (top, left, height, width) of the one filled rectangle of a colour."""
    ys, xs = np.nonzero((shown == colour).all(axis=-1))
    height, width = int(np.ptp(ys)) + 1, int(np.ptp(xs)) + 1
    assert len(ys) == height * width
    return int(ys.min()), int(xs.min()), height, width


def text(shown: NDArray[Any]) -> NDArray[Any]:
    """Return a mask of dark pixels; only text is dark."""
    dark: NDArray[Any] = shown.max(axis=-1) < 128
    return dark


def colours(rows: int, columns: int) -> NDArray[Any]:
    """Return [rows, columns, 3] uint8, all different and none grey like text."""
    red, green = np.meshgrid(40 + 30 * np.arange(rows), 90 + 20 * np.arange(columns), indexing="ij")
    return np.stack([red, green, np.full_like(red, 200)], axis=-1).astype(np.uint8)


@pytest.mark.parametrize("captions", [["a red cat"], ["a red cat", "two dogs that run", "a bird"]])
def test_a_comparison_is_a_table_of_samplers_by_prompts(captions: list[str]) -> None:
    names = ["teacher", "one step"]
    palette = colours(2, len(captions))
    rows = {
        name: torch.from_numpy(palette[i] / 127.5 - 1)[:, :, None, None].expand(-1, -1, 16, 16)
        for i, name in enumerate(names)
    }
    shown = pixels(comparison(rows, captions, tile=30))
    boxes = [[box(shown, palette[i, j]) for j in range(len(captions))] for i in range(2)]
    assert {b[2:] for row in boxes for b in row} == {(32, 32)}
    tops, lefts = [row[0][0] for row in boxes], [b[1] for b in boxes[0]]
    assert [[b[:2] for b in row] for row in boxes] == [[(y, x) for x in lefts] for y in tops]
    assert tops[1] > tops[0] + 32
    assert all(b > a + 32 for a, b in pairwise(lefts))

    ink = text(shown)
    for top in tops:
        assert ink[top : top + 32, : lefts[0]].any()  # the sampler's name
    for left in lefts:
        assert ink[tops[1] + 32 :, left : left + 32].any()  # the prompt
    for edge in (ink[0], ink[-1], ink[:, 0], ink[:, -1]):
        assert not edge.any()


def test_a_long_prompt_makes_a_taller_image_without_truncation() -> None:
    x = torch.ones(1, 3, 112, 112)
    prompt = " ".join(["a photograph of an astronaut riding a horse on the beach at sunset"] * 3)
    short, long = (pixels(comparison({"x": x}, [words])) for words in ("a", prompt))
    assert long.shape[1] == short.shape[1]
    assert long.shape[0] > short.shape[0]
    lowest = int(np.nonzero(text(long))[0].max())
    assert short.shape[0] < lowest < long.shape[0] - 1


@pytest.mark.parametrize("side", [8, 100, 400])
def test_a_contact_sheet_shows_each_image_above_its_caption(side: int) -> None:
    colours = ["red", "lime", "blue", "yellow", "cyan"]
    sheet = contact_sheet([Image.new("RGB", (side, side), c) for c in colours], colours, 2)
    seen = pixels(sheet)
    edge = 160 if side != 100 else 200  # enlarged by an integer factor, or reduced
    assert sheet.size == (2 * (edge + 6) + 6, 3 * (edge + 6 + 3 * 16) + 6)
    for index, colour in enumerate(colours):
        left, top = 6 + index % 2 * (edge + 6), 6 + index // 2 * (edge + 6 + 48)
        tile = seen[top : top + edge, left : left + edge]
        assert (tile == Image.new("RGB", (1, 1), colour).getpixel((0, 0))).all()
        assert (seen[top + edge : top + edge + 48, left : left + edge] < 128).any()  # written
    assert (seen[-edge:, -edge:] == 255).all()  # the last place is free


def test_saving_an_image_leaves_no_other_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "step.000512.png"
    for seed in (1, 2):  # the second replaces the first
        image = to_pil(noise(seed))[0]
        save_png(image, path)
        assert [entry.name for entry in path.parent.iterdir()] == ["step.000512.png"]
        with Image.open(path) as read:
            assert read.format == "PNG"
            np.testing.assert_array_equal(pixels(read), pixels(image))


def test_a_failed_write_keeps_the_old_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "grid.png"
    save_png(to_pil(noise(1))[0], path)
    before = path.read_bytes()

    def full_disk(self: Image.Image, to: Path, **_: Any) -> None:
        to.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(Image.Image, "save", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_png(to_pil(noise(2))[0], path)
    assert path.read_bytes() == before
