"""The results of one optimizer step."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Update(NamedTuple):
    """One optimizer step; tensors are scalars on the device.

    Attributes:
        loss: Mean loss over the batch.
        weight: Mean weight over the batch.
        numbers: Means over the batch of the phase's further numbers, by name.
        gradient_norm: Norm after the repair and before clipping; NaN if not measured.
        skipped_samples: Number of samples whose loss was not finite, over all ranks.
        skipped: Indices of this rank's samples whose loss was not finite.
        nonfinite_gradients: Share of gradient entries that were not finite before the repair; NaN
            if not measured.
        update_ratio: Relative size of the step, ||dw|| / ||w||; NaN if not measured.
    """

    loss: Tensor
    weight: Tensor
    numbers: dict[str, Tensor]
    gradient_norm: Tensor
    skipped_samples: int
    skipped: list[int]
    nonfinite_gradients: Tensor
    update_ratio: Tensor


def together(updates: Sequence[Update], size: int) -> Update:
    """Combine the updates of one network in an iteration.

    Losses, weights and numbers are means over the updates, skipped samples are those of all, and
    what is measured is the last's.

    Args:
        updates: The updates, in order.
        size: This rank's samples per update; the second update's samples follow the first's.
    """
    *_, last = updates
    if len(updates) == 1:
        return last
    return last._replace(
        loss=torch.stack([update.loss for update in updates]).mean(),
        weight=torch.stack([update.weight for update in updates]).mean(),
        numbers={
            name: torch.stack([update.numbers[name] for update in updates]).mean()
            for name in last.numbers
        },
        skipped_samples=sum(update.skipped_samples for update in updates),
        skipped=[step * size + i for step, one in enumerate(updates) for i in one.skipped],
    )
