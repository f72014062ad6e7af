"""The exponential moving average (EMA) of the generator, which is evaluated and exported."""

from collections.abc import Sequence

import torch
from torch import Tensor


def ema_beta(
    batch_size: int, images_seen: int, halflife_images: float, rampup_ratio: float
) -> float:
    """Return beta, the weight of the old EMA (method.md, EMA; as in EDM, Karras et al., 2022).

        beta = 0.5 ** (batch / min(half-life, ramp-up * images seen))

    Args:
        batch_size: Global batch, images per iteration.
        images_seen: Images seen before this iteration; at 0 the EMA becomes a copy.
        halflife_images: Half-life of the EMA in images.
        rampup_ratio: The half-life is at most this share of the images seen.
    """
    halflife = min(halflife_images, images_seen * rampup_ratio)
    return float(0.5 ** (batch_size / max(halflife, 1e-8)))


@torch.no_grad()
def average(averages: Sequence[Tensor], weights: Sequence[Tensor], beta: float) -> None:
    """Update EMAs in place (method.md, EMA): ema = beta ema + (1 - beta) weights."""
    torch._foreach_lerp_(list(averages), list(weights), 1.0 - beta)
