"""Combine values per sample [B] with latents of any shape [B, ...]."""

from torch import Tensor


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """View one number per sample, [B], so that it broadcasts against [B, ...]."""
    return values.view(-1, *[1] * (like.dim() - 1))


def each_sample(latents: Tensor) -> tuple[int, ...]:
    """Return the dimensions to reduce for one number per sample: all but the first."""
    return tuple(range(1, latents.dim()))
