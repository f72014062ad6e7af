"""Exclude samples whose loss is not finite, on all ranks together.

Masking such a loss is not enough: 0 * NaN is NaN in the backward pass and would spoil the whole
micro-batch. Instead the phase runs again with copies of good samples for bad ones, and their losses
are masked. If one rank has a bad sample, all ranks run the phase again: sharded networks
communicate in every forward and backward pass, so ranks with different numbers of passes would
deadlock.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from sid_lsg.distributed.processes import gather, process
from sid_lsg.method.adversarial import RealSamples
from sid_lsg.method.conditioning import Conditioning
from sid_lsg.method.draws import Draws
from sid_lsg.method.phases import PhaseInputs

_SHOWN = 3  # prompts in the warning


class Reading:
    """Integers that are copied asynchronously from the device to the host."""

    def __init__(self, numbers: Tensor) -> None:
        """Queue the copy after the work that the device already has."""
        self._numbers = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=numbers.is_cuda)
        self._numbers.copy_(numbers, non_blocking=True)
        self._sent = torch.cuda.Event() if numbers.is_cuda else None
        if self._sent:
            self._sent.record()

    def __int__(self) -> int:
        """Wait for the copy, but not for work queued after it; return the only number."""
        return int(self._arrived())

    def tolist(self) -> list[int]:
        """Wait for the copy, but not for work queued after it; return all numbers."""
        found: list[int] = self._arrived().tolist()
        return found

    def _arrived(self) -> Tensor:
        if self._sent:
            self._sent.synchronize()
        return self._numbers


def count(flags: Tensor) -> Reading:
    """Count the true flags over all ranks. Collective."""
    total = flags.sum()
    if process()[1] > 1:
        dist.all_reduce(total)
    return Reading(total)


def replace_bad(inputs: PhaseInputs, good: Tensor) -> PhaseInputs:
    """Replace every bad sample by a copy of a good one, whose loss is masked.

    A rank without good samples uses zeros, for which the output of a network with finite weights is
    finite. The number of samples does not change, so micro-batches stay the same.

    Args:
        inputs: B samples.
        good: [B] bool.
    """
    places = torch.arange(inputs.size, device=good.device)
    if good.any():
        chosen = inputs.select(torch.where(good, places, good.int().argmax()))
        return chosen._replace(counted=good)
    real = inputs.real
    if real is not None:
        images = torch.zeros_like(real.images)
        real = RealSamples(images, _zeros(real.condition), _without_noise(real.draws))
    condition, draws = _zeros(inputs.condition), _without_noise(inputs.draws)
    return inputs._replace(condition=condition, draws=draws, real=real, counted=good)


def _zeros(condition: Conditioning) -> Conditioning:
    return {name: torch.zeros_like(value) for name, value in condition.items()}


def _without_noise(draws: Draws) -> Draws:
    noises = [torch.zeros_like(noise) for noise in draws.noises]
    return draws._replace(noises=noises, eps=torch.zeros_like(draws.eps))


def warn(iteration: int, prompts: Sequence[str]) -> None:
    """Warn about the bad samples of all ranks with their prompts. Collective."""
    found = gather(list(prompts))
    shown = ", ".join(repr(prompt) for prompt in found[:_SHOWN])
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    rank_zero_warn(
        f"Iteration {iteration}: the loss of {len(found)} sample(s) was not finite: {shown}{more}. "
        "They were excluded from the step. The log counts further ones as skipped_samples."
    )
