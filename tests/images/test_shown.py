"""Images are decoded as viewers show them for training, and as published for scores."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps

from sid_lsg.data.real_images import RealImages
from sid_lsg.images.folder import read_image
from sid_lsg.images.shown import as_shown

SIDE = 16


def picture() -> Image.Image:
    """Return an image whose quarters differ."""
    image = Image.new("RGB", (SIDE, SIDE), "black")
    image.paste("red", (0, 0, 8, 8))
    image.paste("lime", (8, 0, 16, 8))
    image.paste("blue", (0, 8, 8, 16))
    return image


def trained_on(path: Path) -> np.ndarray:
    """Return what training gets of an image: [H, W, 3]."""
    (path.parent / "metadata.csv").write_text(f"file_name,text\n{path.name},a caption\n")
    batch = RealImages(str(path.parent)).batch(0, 1, 0, (SIDE, SIDE), None)
    return batch.images[0].permute(1, 2, 0).numpy()


def scored(path: Path) -> np.ndarray:
    """Return what scores get of an image: [H, W, 3]."""
    return read_image(path).permute(1, 2, 0).numpy()


@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "JPEG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_photographs_stand_upright_in_training_only(
    tmp_path: Path, kind: str, orientation: int
) -> None:
    image = picture()
    exif = image.getexif()
    exif[0x112] = orientation
    options: dict[str, Any] = {} if kind in ("jpg", "JPEG") else {"lossless": True}
    image.save(tmp_path / f"a.{kind}", exif=exif, quality=100, subsampling=0, **options)
    with Image.open(tmp_path / f"a.{kind}") as opened:
        stored, upright = np.asarray(opened), np.asarray(ImageOps.exif_transpose(opened))
    np.testing.assert_array_equal(trained_on(tmp_path / f"a.{kind}"), upright)
    np.testing.assert_array_equal(scored(tmp_path / f"a.{kind}"), stored)
    assert (orientation == 1) == np.array_equal(upright, stored)


def on_white(image: Image.Image) -> np.ndarray:
    """Blend the colours with white by the opacity, in numpy."""
    pixels = np.asarray(image.convert("RGBA")).astype(float)
    opacity = pixels[..., 3:] / 255
    return pixels[..., :3] * opacity + 255 * (1 - opacity)


@pytest.mark.parametrize("kind", ["png", "webp", "tiff"])
@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_on_white_in_training_only(tmp_path: Path, mode: str, kind: str) -> None:
    image = picture().convert(mode)
    ramp = np.linspace(0, 255, SIDE * SIDE).astype(np.uint8).reshape(SIDE, SIDE)
    image.putalpha(Image.fromarray(ramp))
    path = tmp_path / f"a.{kind}"
    image.save(path, **({"lossless": True, "exact": True} if kind == "webp" else {}))
    np.testing.assert_allclose(trained_on(path), on_white(image), atol=1.01)
    np.testing.assert_array_equal(scored(path), np.asarray(image.convert("RGB")))


def transparent_palette(image: Image.Image, path: Path) -> None:
    image = image.quantize(4)
    image.save(path, transparency=image.getpixel((0, 0)))


def transparent_colour(image: Image.Image, path: Path) -> None:
    image.save(path, transparency=image.getpixel((0, 0)))


def transparent_16_bit(image: Image.Image, path: Path) -> None:
    grey = np.asarray(image.convert("L")).astype(np.uint16) * 257
    Image.fromarray(grey).save(path, transparency=int(grey[0, 0]))


@pytest.mark.parametrize(
    "save",
    [
        transparent_palette,
        transparent_colour,
        lambda image, path: transparent_colour(image.convert("L"), path),
        transparent_16_bit,
    ],
    ids=["palette", "colour", "grey", "16 bit"],
)
def test_a_transparent_colour_is_white(tmp_path: Path, save: Any) -> None:
    save(picture(), tmp_path / "a.png")
    found = trained_on(tmp_path / "a.png")
    assert (found[:8, :8] == 255).all()
    assert found[8:, 8:].max() == 0
    assert not (scored(tmp_path / "a.png")[:8, :8] == 255).all()


def profile_with_swapped_primaries() -> bytes:
    """Return sRGB's ICC profile with red and green exchanged."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    places = {}
    for entry in range(int.from_bytes(data[128:132], "big")):
        start = 132 + 12 * entry
        places[bytes(data[start : start + 4])] = start + 4
    red, green = places[b"rXYZ"], places[b"gXYZ"]
    data[red : red + 8], data[green : green + 8] = data[green : green + 8], data[red : red + 8]
    return bytes(data)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_colour_profiles_are_converted_to_srgb_in_training_only(tmp_path: Path, mode: str) -> None:
    image = picture() if mode == "RGB" else picture().convert(mode)
    image.save(tmp_path / "a.png", icc_profile=profile_with_swapped_primaries())
    found = trained_on(tmp_path / "a.png").astype(int)
    red, green, blue = np.asarray(picture()).astype(int).transpose(2, 0, 1)
    expected = np.stack([green, red, blue], 2)
    assert np.abs(found - expected).max() <= 2
    np.testing.assert_array_equal(scored(tmp_path / "a.png"), np.asarray(picture()))


def test_an_srgb_profile_changes_nothing(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(noise).save(tmp_path / "a.png", icc_profile=profile)
    assert np.abs(trained_on(tmp_path / "a.png").astype(int) - noise).max() <= 1


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGB"])
def test_a_damaged_or_foreign_profile_is_ignored(tmp_path: Path, mode: str) -> None:
    image = picture().convert(mode)
    profiles = [b"", b"no profile", profile_with_swapped_primaries()[:300]]
    if mode != "RGB":
        profiles.append(profile_with_swapped_primaries())  # of RGB
    for profile in profiles:
        image.save(tmp_path / "a.tif", icc_profile=profile)
        np.testing.assert_array_equal(
            trained_on(tmp_path / "a.tif"), np.asarray(image.convert("RGB"))
        )


def test_a_damaged_orientation_is_ignored(tmp_path: Path) -> None:
    for number, exif in enumerate(
        [b"Exif\0\0II*\0", b"Exif\0\0junk", b"Exif\0\0II*\0\x08\0\0\0\xff\xff"]
    ):
        file = io.BytesIO()
        picture().save(file, "JPEG", exif=exif, quality=100, subsampling=0)
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "a.jpg").write_bytes(file.getvalue())
        np.testing.assert_array_equal(trained_on(folder / "a.jpg"), scored(folder / "a.jpg"))


@pytest.mark.parametrize(
    ("mode", "kind"),
    [("1", "png"), ("L", "jpg"), ("P", "png"), ("CMYK", "jpg"), ("CMYK", "tif"), ("YCbCr", "jpg")],
)
def test_other_modes_become_rgb(tmp_path: Path, mode: str, kind: str) -> None:
    picture().convert(mode).save(tmp_path / f"a.{kind}")
    with Image.open(tmp_path / f"a.{kind}") as image:
        expected = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(trained_on(tmp_path / f"a.{kind}"), expected)


@pytest.mark.parametrize("kind", ["png", "webp", "tif"])
def test_the_first_of_several_frames_is_used(tmp_path: Path, kind: str) -> None:
    others = [Image.new("RGB", (SIDE, SIDE), "yellow"), Image.new("RGB", (SIDE, SIDE), "pink")]
    options: dict[str, Any] = {"lossless": True} if kind == "webp" else {}
    picture().save(tmp_path / f"a.{kind}", save_all=True, append_images=others, **options)
    np.testing.assert_array_equal(trained_on(tmp_path / f"a.{kind}"), np.asarray(picture()))


def test_everything_at_once() -> None:
    """A rotated image with transparency and a profile."""
    image = picture().convert("RGBA")
    image.paste((0, 0, 0, 0), (8, 8, 16, 16))
    exif = image.getexif()
    exif[0x112] = 3  # upside down
    file = io.BytesIO()
    image.save(file, "PNG", exif=exif, icc_profile=profile_with_swapped_primaries())
    shown = as_shown(Image.open(file))
    corners = [shown.getpixel(place) for place in ((0, 0), (15, 0), (0, 15), (15, 15))]
    expected = [(255, 255, 255), (0, 0, 255), (255, 0, 0), (0, 255, 0)]
    assert np.abs(np.subtract(corners, expected)).max() <= 2
