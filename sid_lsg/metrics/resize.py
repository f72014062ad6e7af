"""Resizing for feature networks; FIDs with different resizing are not comparable.

Functions take uint8 images [B, 3, H, W] and return uint8 unless they say otherwise. Images that
are not square are cropped at the centre.
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
    return _resize_each(images, size, Image.Resampling.LANCZOS)


def bicubic(images: Tensor, size: int) -> Tensor:
    """Resize with Pillow's BICUBIC and crop to a square, as CLIP's preprocessing does."""
    height, width = images.shape[-2:]
    if height == width:
        return _resize_each(images, size, Image.Resampling.BICUBIC)
    short = min(height, width)
    shape = (int(size * width / short), int(size * height / short))  # truncated as in transformers

    def resize(image: Tensor) -> Tensor:
        return _tensor(_pil(image).resize(shape, Image.Resampling.BICUBIC))

    return _square(torch.stack(list(_POOL.map(resize, images))))


def fast_bicubic(images: Tensor, size: int) -> Tensor:
    """Crop to a square and resize with torch's antialiased bicubic, on the images' device."""
    images = _square(images)
    if images.shape[-1] == size:
        return images
    resized = F.interpolate(images.float(), (size, size), mode="bicubic", antialias=True)
    return resized.round().clamp(0, 255).byte()


def bicubic_float(images: Tensor, size: int) -> Tensor:
    """Resize each channel of square images in float32 with Pillow's BICUBIC (Parmar et al., 2022).

    Returns:
        [B, 3, size, size] float32 in 0..255, not rounded; overshoots are clipped.
    """

    def resize(channel: Tensor) -> Tensor:
        plane = Image.fromarray(channel.numpy())  # mode "F"
        return torch.from_numpy(np.array(plane.resize((size, size), Image.Resampling.BICUBIC)))

    planes = images.cpu().float().flatten(0, 1)
    resized = torch.stack(list(_POOL.map(resize, planes))).clamp(0, 255)
    return resized.unflatten(0, (len(images), 3))


def _resize_each(images: Tensor, size: int, method: Image.Resampling) -> Tensor:
    images = _square(images)
    if images.shape[-1] == size:
        return images

    def resize(image: Tensor) -> Tensor:
        return _tensor(_pil(image).resize((size, size), method))

    return torch.stack(list(_POOL.map(resize, images)))


def _square(images: Tensor) -> Tensor:
    """Crop [B, 3, H, W] to its central square."""
    height, width = images.shape[-2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return images[..., top : top + side, left : left + side]


def _pil(image: Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).cpu().numpy())


def _tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)
