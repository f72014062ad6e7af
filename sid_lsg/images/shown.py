"""Decode images as viewers show them, for training.

Scores read images with `pixels.rgb` instead, as the published protocols do: without rotation,
colour profile and background.
"""

import contextlib
import functools
import io
import struct

import numpy as np
from PIL import Image, ImageCms, ImageOps

from sid_lsg.images.pixels import rgb

_ORIENTATION = 0x0112  # its tag in EXIF
# What Pillow raises for metadata that viewers ignore because it is damaged.
_DAMAGED = (OSError, SyntaxError, ValueError, KeyError, TypeError, struct.error)


def as_shown(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to upright 8-bit RGB in the colour space sRGB.

    It is rotated as its EXIF orientation says, converted from its ICC profile to sRGB, and put on
    white where it is transparent. Of an animation or several pages the first one is used. Without
    a profile, RGB and grey are taken as sRGB. A damaged orientation or profile is ignored.

    Raises:
        ValueError: If the image has 32 bits per pixel, for which white is undefined.
    """
    image.load()  # errors of the pixels are not those of the metadata
    profile = image.info.get("icc_profile")
    with contextlib.suppress(*_DAMAGED):
        image = ImageOps.exif_transpose(image)
    alpha = _alpha(image)
    colours = _in_srgb(image, profile) if profile else rgb(image)
    if alpha is None:
        return colours
    return Image.composite(colours, Image.new("RGB", image.size, "white"), alpha)


def looks_different(image: Image.Image) -> bool:
    """Return True if a viewer turns an image or shows a background through it."""
    with contextlib.suppress(*_DAMAGED):
        return image.has_transparency_data or image.getexif().get(_ORIENTATION, 1) != 1
    return False


def _alpha(image: Image.Image) -> Image.Image | None:
    """Return the opacity (mode L); None if the image is opaque."""
    if not image.has_transparency_data:
        return None
    if image.mode.startswith("I;16"):
        opaque = np.asarray(image) != image.info["transparency"]
        return Image.fromarray(opaque.astype(np.uint8) * 255)
    return image.convert("RGBA").getchannel("A")


def _in_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """Convert the colours of an image, without its opacity, from its profile to sRGB."""
    if image.mode in ("CMYK", "LAB"):
        source = image
    elif image.mode in ("1", "L", "LA", "La") or image.mode.startswith("I;16"):
        source = rgb(image).convert("L")
    else:
        source = rgb(image)
    transform = _transform(profile, source.mode)
    converted = transform and ImageCms.applyTransform(source, transform)
    return converted or rgb(image)


@functools.lru_cache(maxsize=16)  # the photographs of a folder share few profiles
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Return the conversion from a profile to sRGB; None if it does not fit the image's mode."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        return ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
    except (ImageCms.PyCMSError, *_DAMAGED):
        return None
