"""The average of the generator that is evaluated and exported."""

from collections.abc import Sequence

import torch
from torch import nn

from sid_lsg.distributed.sharding import local


def ema_beta(
    batch_size: int, images_seen: int, halflife_images: float, rampup_ratio: float
) -> float:
    """Return the weight of the old average: 0.5 ** (batch / min(half-life, ramp-up * images seen)).

    Args:
        batch_size: Global batch, images per iteration.
        images_seen: Images seen before this iteration; at 0 the average starts as a copy.
        halflife_images: Half-life of the average in images.
        rampup_ratio: The half-life is at most this share of the images seen.
    """
    halflife = min(halflife_images, images_seen * rampup_ratio)
    return float(0.5 ** (batch_size / max(halflife, 1e-8)))


@torch.no_grad()
def update_ema(ema: Sequence[nn.Parameter], trained: Sequence[nn.Parameter], beta: float) -> None:
    """Average what is trained, in place: ema = beta ema + (1 - beta) trained.

    The averages may be on the CPU.
    """
    averages, weights = ([local(p) for p in parameters] for parameters in (ema, trained))
    if averages[0].device == weights[0].device:
        torch._foreach_lerp_(averages, weights, 1.0 - beta)
        return
    for average, weight in zip(averages, weights, strict=True):  # one copy at a time
        average.lerp_(weight.to(average.device), 1.0 - beta)
