"""The results of one optimizer step."""

from typing import NamedTuple

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
