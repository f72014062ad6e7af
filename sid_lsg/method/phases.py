"""What goes into the two phases of an iteration, and what comes out."""

from typing import NamedTuple

from torch import Tensor

from sid_lsg.method.draws import Draws
from sid_lsg.teachers.base import Conditioning, select

Parts = dict[str, Tensor]
"""Further numbers of a phase's samples for the log, by name: each [B], or their mean."""


class RealSamples(NamedTuple):
    """Real images for phase 1's adversarial term: [B, 3, H, W] uint8, with captions and numbers."""

    images: Tensor
    condition: Conditioning
    draws: Draws

    def select(self, index: Tensor | slice) -> "RealSamples":
        """Take some of the images."""
        return RealSamples(
            self.images[index], select(self.condition, index), self.draws.select(index)
        )


class PhaseInputs(NamedTuple):
    """What one phase works on: B samples' conditioning and random numbers, and real images."""

    condition: Conditioning
    draws: Draws
    real: RealSamples | None = None

    @property
    def size(self) -> int:
        """B."""
        return len(self.draws.t)

    def select(self, index: Tensor | slice) -> "PhaseInputs":
        """Take some of the samples."""
        real = self.real.select(index) if self.real else None
        return PhaseInputs(select(self.condition, index), self.draws.select(index), real)


class FakeScoreOutput(NamedTuple):
    """Phase 1: the loss [B], its weight, the generator's sample, the guided prediction at it."""

    loss: Tensor
    weight: Tensor
    x_g: Tensor
    prediction: Tensor
    parts: Parts = {}  # noqa: RUF012 (read only)


class GeneratorOutput(NamedTuple):
    """Phase 2: the loss [B], w, the sample, and both networks' guided x_0-estimates."""

    loss: Tensor
    weight: Tensor
    x_g: Tensor
    y_fake_2: Tensor
    y_fake_3: Tensor
    y_real: Tensor
    parts: Parts = {}  # noqa: RUF012


class Update(NamedTuple):
    """What one optimizer step reports; tensors are scalars on the device.

    Attributes:
        loss: Mean over the batch.
        weight: Mean over the batch.
        parts: Means over the batch of the phase's further numbers, by name.
        gradient_norm: After the repair, before clipping; NaN in iterations that are not measured.
        skipped_samples: How many samples' losses were not finite, over all ranks.
        skipped: Which of this rank's samples those were.
        nonfinite_gradients: Share of the gradients' entries that were not finite, before the
            repair; NaN likewise.
        update_ratio: How far the step went, ||dw|| / ||w||; NaN likewise.
    """

    loss: Tensor
    weight: Tensor
    parts: Parts
    gradient_norm: Tensor
    skipped_samples: int
    skipped: list[int]
    nonfinite_gradients: Tensor
    update_ratio: Tensor
