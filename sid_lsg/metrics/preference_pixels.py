"""Preprocessing of images for the preference models."""

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor


def hpsv2_pixels(images: Tensor, size: int) -> Tensor:
    """Resize images so that the longer side is `size`, and pad with black to a square.

    Matches HPSv2's `ResizeMaxSize` with torchvision 0.17 or later: bicubic in float with
    antialiasing, neither rounded nor clipped. Earlier versions, possibly used for the published
    tables, did not antialias.

    Args:
        images: [B, 3, H, W] uint8.
        size: Side of the result.

    Returns:
        [B, 3, size, size] float32, white is 1.
    """
    pixels = images.float() / 255
    scale = size / max(images.shape[-2:])
    height, width = (round(side * scale) for side in images.shape[-2:])
    if scale != 1:
        pixels = F.interpolate(pixels, (height, width), mode="bicubic", antialias=True)
    down, right = size - height, size - width
    return F.pad(pixels, (right // 2, right - right // 2, down // 2, down - down // 2))


def image_reward_pixels(images: Tensor, size: int) -> Tensor:
    """Resize images so that the shorter side is `size`, and crop the central square.

    Matches ImageReward: Pillow's bicubic filter, rounded to 8 bits.

    Args:
        images: [B, 3, H, W] uint8.
        size: Side of the result.

    Returns:
        [B, 3, size, size] float32 on the CPU, white is 1.
    """
    height, width = images.shape[-2:]
    shape = (size * width // min(height, width), size * height // min(height, width))
    left, top = (round((side - size) / 2) for side in shape)
    prepared = []
    for image in images.permute(0, 2, 3, 1).cpu().numpy():
        resized = np.array(Image.fromarray(image).resize(shape, Image.Resampling.BICUBIC))
        prepared.append(torch.from_numpy(resized[top : top + size, left : left + size]))
    return torch.stack(prepared).permute(0, 3, 1, 2).float() / 255
