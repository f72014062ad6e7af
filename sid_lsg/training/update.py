"""What one optimizer step reports."""

from typing import NamedTuple

from torch import Tensor


class Update(NamedTuple):
    """One optimizer step; tensors are scalars on the device.

    Attributes:
        loss: Mean over the batch.
        weight: Mean over the batch.
        numbers: Means over the batch of the phase's further numbers, by name.
        gradient_norm: After the repair, before clipping; NaN in iterations that are not measured.
        skipped_samples: How many samples' losses were not finite, over all ranks.
        skipped: Which of this rank's samples those were.
        nonfinite_gradients: Share of the gradients' entries that were not finite, before the
            repair; NaN likewise.
        update_ratio: Relative size of the step, ||dw|| / ||w||; NaN likewise.
    """

    loss: Tensor
    weight: Tensor
    numbers: dict[str, Tensor]
    gradient_norm: Tensor
    skipped_samples: int
    skipped: list[int]
    nonfinite_gradients: Tensor
    update_ratio: Tensor
