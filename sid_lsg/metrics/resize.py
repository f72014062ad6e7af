"""Resizing for feature networks; FIDs with different resizing are not comparable.

Functions take uint8 images [B, 3, H, W] and return uint8 [B, 3, size, size] unless they say
otherwise.
"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

_POOL = ThreadPoolExecutor(thread_name_prefix="resize")  # Pillow resamples without the GIL


def lanczos(images: Tensor, size: int) -> Tensor:
    """Crop to a square and resize with Pillow's LANCZOS, the first step of the paper's FID."""
    return _resize(_square(images), (size, size), Image.Resampling.LANCZOS)


def bicubic(images: Tensor, size: int) -> Tensor:
    """Resize with Pillow's BICUBIC and crop to a square, as transformers does for CLIP."""
    return _square(_shorter(images, size))


def cropped_bicubic(images: Tensor, size: int) -> Tensor:
    """Crop to a square and resize with Pillow's BICUBIC, as CMMD's code does."""
    return _resize(_square(images), (size, size), Image.Resampling.BICUBIC)


def stretched_bicubic(images: Tensor, size: int) -> Tensor:
    """Resize both sides to `size` with Pillow's BICUBIC, as dgm-eval does."""
    return _resize(images, (size, size), Image.Resampling.BICUBIC)


def rounded_bicubic(images: Tensor, size: int) -> Tensor:
    """Resize and crop like `bicubic`, with torchvision's rounding, as OpenAI's CLIP does."""
    return _middle(_shorter(images, size), size)


def centre(images: Tensor, size: int) -> Tensor:
    """Crop the centre without resizing, as the FID of patches does: float32 in 0..255.

    As in DMD2's code, images with a side below `size` are resized whole instead.
    """
    if min(images.shape[-2:]) < size:
        return bicubic_float(images, size)
    return _middle(images, size).float()


def fitted_bicubic(images: Tensor, size: int) -> Tensor:
    """Resize so that the longer side is `size`, and pad with black to a square, as HPSv2 does.

    Matches its `ResizeMaxSize` with torchvision 0.17 or later: bicubic in float with antialiasing.
    Earlier versions, possibly used for the published tables, did not antialias.

    Returns:
        [B, 3, size, size] float32 in 0..255, neither rounded nor clipped.
    """
    pixels = images.float()
    scale = size / max(images.shape[-2:])
    height, width = (round(side * scale) for side in images.shape[-2:])
    if scale != 1:
        pixels = F.interpolate(pixels, (height, width), mode="bicubic", antialias=True)
    down, right = size - height, size - width
    return F.pad(pixels, (right // 2, right - right // 2, down // 2, down - down // 2))


def fast_bicubic(images: Tensor, size: int) -> Tensor:
    """Crop to a square and resize with torch's antialiased bicubic, on the images' device."""
    images = _square(images)
    if images.shape[-1] == size:
        return images
    resized = F.interpolate(images.float(), (size, size), mode="bicubic", antialias=True)
    return resized.round().clamp(0, 255).byte()


def bicubic_float(images: Tensor, size: int) -> Tensor:
    """Resize each channel to a square in float32 with Pillow's BICUBIC (Parmar et al., 2022).

    Returns:
        [B, 3, size, size] float32 in 0..255, not rounded; overshoots are clipped.
    """

    def resize(channel: Tensor) -> Tensor:
        plane = Image.fromarray(channel.numpy())  # mode "F"
        return torch.from_numpy(np.array(plane.resize((size, size), Image.Resampling.BICUBIC)))

    planes = images.cpu().float().flatten(0, 1)
    resized = torch.stack(list(_POOL.map(resize, planes))).clamp(0, 255)
    return resized.unflatten(0, (len(images), 3))


def _shorter(images: Tensor, size: int) -> Tensor:
    """Resize the shorter side to `size`; the other one is truncated to whole pixels."""
    height, width = images.shape[-2:]
    short = min(height, width)
    shape = (int(size * width / short), int(size * height / short))
    return _resize(images, shape, Image.Resampling.BICUBIC)


def _resize(images: Tensor, shape: tuple[int, int], method: Image.Resampling) -> Tensor:
    """Resize uint8 images to a shape (width, height) with Pillow."""
    if images.shape[-2:] == shape[::-1]:
        return images

    def resize(image: Tensor) -> Tensor:
        return _tensor(_pil(image).resize(shape, method))

    return torch.stack(list(_POOL.map(resize, images)))


def _square(images: Tensor) -> Tensor:
    """Crop [B, 3, H, W] to its central square."""
    height, width = images.shape[-2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return images[..., top : top + side, left : left + side]


def _middle(images: Tensor, size: int) -> Tensor:
    """Crop the centre to `size` x `size`; half pixels are rounded as torchvision does."""
    top, left = (round((side - size) / 2) for side in images.shape[-2:])
    return images[..., top : top + size, left : left + size]


def _pil(image: Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).cpu().numpy())


def _tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)
