"""What goes into the two phases of an iteration, and what comes out."""

from typing import NamedTuple

from torch import Tensor

from sid_lsg.draws import Draws
from sid_lsg.teacher import Conditioning, select


class PhaseInputs(NamedTuple):
    """What one phase works on: B samples' conditioning and random numbers."""

    condition: Conditioning
    draws: Draws

    @property
    def size(self) -> int:
        """B."""
        return len(self.draws.t)

    def select(self, index: Tensor | slice) -> "PhaseInputs":
        """Take some of the samples."""
        noises, *others = self.draws
        chosen = Draws([z[index] for z in noises], *(tensor[index] for tensor in others))
        return PhaseInputs(select(self.condition, index), chosen)


class FakeScoreOutput(NamedTuple):
    """Phase 1: the loss [B], its weight, the generator's sample, the guided prediction at it."""

    loss: Tensor
    weight: Tensor
    x_g: Tensor
    prediction: Tensor


class GeneratorOutput(NamedTuple):
    """Phase 2: the loss [B], w, the sample, and both networks' guided x_0-estimates."""

    loss: Tensor
    weight: Tensor
    x_g: Tensor
    y_fake_2: Tensor
    y_fake_3: Tensor
    y_real: Tensor


class Update(NamedTuple):
    """What one optimizer step reports; tensors are scalars on the device.

    Attributes:
        loss: Mean over the batch.
        weight: Mean over the batch.
        gradient_norm: After the repair, before clipping.
        skipped_samples: How many samples' losses were not finite, over all ranks.
        skipped: Which of this rank's samples those were.
        nonfinite_gradients: Share of the gradients' entries that were not finite, before the
            repair; NaN in iterations that are not measured.
        update_ratio: How far the step went, ||dw|| / ||w||; NaN likewise.
    """

    loss: Tensor
    weight: Tensor
    gradient_norm: Tensor
    skipped_samples: int
    skipped: list[int]
    nonfinite_gradients: Tensor
    update_ratio: Tensor
