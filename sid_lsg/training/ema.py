"""Update the generator's EMA, also if it is sharded or on the CPU."""

from collections.abc import Sequence

from torch import nn

from sid_lsg.distributed.sharding import local
from sid_lsg.method.ema import average


def update_ema(ema: Sequence[nn.Parameter], trained: Sequence[nn.Parameter], beta: float) -> None:
    """Update the EMA in place: ema = beta ema + (1 - beta) trained.

    Sharded weights are averaged shard by shard. The EMA may be on the CPU.
    """
    averages, weights = ([local(p) for p in parameters] for parameters in (ema, trained))
    if averages[0].device == weights[0].device:
        average(averages, weights, beta)
        return
    for old, weight in zip(averages, weights, strict=True):  # one at a time, to save memory
        average([old], [weight.to(old.device)], beta)
