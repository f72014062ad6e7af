"""The conditioning of networks on prompts, and prompt dropout."""

from collections.abc import Callable

import torch
from torch import Tensor

from sid_lsg.method.shapes import per_sample

Conditioning = dict[str, Tensor]
"""Named tensors with samples in the first dimension. Their meaning depends on the family."""

Predict = Callable[[Tensor, Tensor, Conditioning], Tensor]
"""A network as a function: (x_t [B, ...], t [B], conditioning) -> its prediction [B, ...]."""


def select(condition: Conditioning, index: Tensor | slice) -> Conditioning:
    """Select the conditioning of some samples."""
    return {name: value[index] for name, value in condition.items()}


def expand(condition: Conditioning, size: int) -> Conditioning:
    """Repeat the conditioning of one prompt for `size` samples, without copying."""
    return {name: value.expand(size, *value.shape[1:]) for name, value in condition.items()}


def concatenate(first: Conditioning, second: Conditioning) -> Conditioning:
    """Concatenate two batches' conditioning along the samples."""
    return {name: torch.cat((value, second[name])) for name, value in first.items()}


def replace_where(mask: Tensor, condition: Conditioning, by: Conditioning) -> Conditioning:
    """Replace the conditioning of the samples in `mask` [B] bool by that of one prompt."""
    return {
        name: torch.where(per_sample(mask, value), by[name], value)
        for name, value in condition.items()
    }


def drop_prompts(
    condition: Conditioning, null: Conditioning, u: Tensor, probability: float
) -> Conditioning:
    """Replace each sample's prompt by the empty one with some probability (method.md, phase 1).

    This trains the fake score to predict without a prompt, which guidance needs.
    `Kappas.drops_prompts` says if the method does it.

    Args:
        condition: B samples' conditioning.
        null: The empty prompt's conditioning, one sample.
        u: [B] uniform in [0, 1).
        probability: 0.1 in the paper's runs.
    """
    return replace_where(u < probability, condition, null)
