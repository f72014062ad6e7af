"""Pack latents into tokens of 2 x 2 patches, as FLUX's and Qwen-Image's networks take them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

PATCH = 2
"""Latent pixels per side of a token."""


def pack(latents: Tensor) -> Tensor:
    """Turn latents [B, C, h, w] into tokens [B, h/2 w/2, 4 C]; features in the order C, 2, 2."""
    size, channels, height, width = latents.shape
    rows, columns = height // PATCH, width // PATCH
    split = latents.reshape(size, channels, rows, PATCH, columns, PATCH)
    return split.permute(0, 2, 4, 1, 3, 5).reshape(size, rows * columns, channels * PATCH**2)


def unpack(tokens: Tensor, shape: Sequence[int]) -> Tensor:
    """Turn tokens back into latents [B, C, h, w].

    Args:
        tokens: [B, h/2 w/2, 4 C].
        shape: (C, h, w).
    """
    channels, height, width = shape
    rows, columns = height // PATCH, width // PATCH
    split = tokens.reshape(len(tokens), rows, columns, channels, PATCH, PATCH)
    return split.permute(0, 3, 1, 4, 2, 5).reshape(len(tokens), channels, height, width)


def axes_problem(config: Any) -> str | None:
    """Describe positions that do not fill the heads of a network's attention, if they do not."""
    axes, head = config.axes_dims_rope, config.attention_head_dim
    if sum(axes) == head:
        return None
    return f"its transformer has axes_dims_rope {list(axes)}, whose sum is not {head}"


def grid(height: int, width: int, like: Tensor, axes: int = 3) -> Tensor:
    """Return the positions of tokens: [height width, axes], with row and column in axes 1 and 2.

    Args:
        height: Rows of tokens.
        width: Columns of tokens.
        like: Gives the dtype and the device.
        axes: Number of axes; the others are 0.
    """
    found = like.new_zeros(height, width, axes)
    found[..., 1] = torch.arange(height, dtype=like.dtype, device=like.device)[:, None]
    found[..., 2] = torch.arange(width, dtype=like.dtype, device=like.device)
    return found.view(height * width, axes)
