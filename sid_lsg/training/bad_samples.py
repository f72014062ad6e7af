"""Samples whose loss is not finite: all ranks learn of them together, and they have no effect.

Masking such a loss would not do: 0 * NaN is NaN in the backward pass and would spoil the whole
micro-batch. So the phase is evaluated again with finite samples in their places, whose losses are
masked. Every rank does that if one of them must: networks that are sharded communicate in every
forward and backward pass, and ranks that disagreed on the number of passes would wait for ever.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from sid_lsg.distributed.processes import gather, process
from sid_lsg.method.phases import PhaseInputs

_SHOWN = 3  # prompts in the warning


class Reading:
    """Whole numbers on their way from the device, which goes on working meanwhile."""

    def __init__(self, numbers: Tensor) -> None:
        """Send them to the host, behind what the device has been told to do so far."""
        self._numbers = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=numbers.is_cuda)
        self._numbers.copy_(numbers, non_blocking=True)
        self._sent = torch.cuda.Event() if numbers.is_cuda else None
        if self._sent:
            self._sent.record()

    def __int__(self) -> int:
        """Wait for the only one; not for what the device was told to do later."""
        return int(self._arrived())

    def tolist(self) -> list[int]:
        """Wait for several in the same way."""
        found: list[int] = self._arrived().tolist()
        return found

    def _arrived(self) -> Tensor:
        if self._sent:
            self._sent.synchronize()
        return self._numbers


def count(flags: Tensor) -> Reading:
    """Count the true flags of all ranks together."""
    total = flags.sum()
    if process()[1] > 1:
        dist.all_reduce(total)
    return Reading(total)


def replace_bad(inputs: PhaseInputs, good: Tensor) -> PhaseInputs:
    """Replace every bad sample by a copy of a good one, which does not count.

    A rank without a good sample takes zeros, which any working network can evaluate. The number of
    samples stays, and so do the micro-batches.

    Args:
        inputs: B samples.
        good: [B] bool.
    """
    places = torch.arange(inputs.size, device=good.device)
    if good.any():
        chosen = inputs.select(torch.where(good, places, good.int().argmax()))
        return chosen._replace(counted=good)
    condition = {name: torch.zeros_like(value) for name, value in inputs.condition.items()}
    noises = [torch.zeros_like(noise) for noise in inputs.draws.noises]
    zeros = inputs.draws._replace(noises=noises, eps=torch.zeros_like(inputs.draws.eps))
    return inputs._replace(condition=condition, draws=zeros, counted=good)


def warn(iteration: int, prompts: Sequence[str]) -> None:
    """Name the prompts of all ranks' bad samples. For all ranks."""
    found = gather(list(prompts))
    shown = ", ".join(repr(prompt) for prompt in found[:_SHOWN])
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    rank_zero_warn(
        f"Iteration {iteration}: the loss of {len(found)} sample(s) was not finite: {shown}{more}. "
        "They had no part in the step. Further ones are counted in the log as skipped_samples."
    )
