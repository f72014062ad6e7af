"""The four guidance scales."""

from typing import NamedTuple


class Kappas(NamedTuple):
    """kappa_1..kappa_4 of the paper."""

    train_fake: float
    eval_fake_2: float
    eval_fake_3: float
    eval_real: float

    @property
    def evaluations(self) -> tuple[int, int, int]:
        """Evaluations per image: of the fake score in phase 1 and in phase 2, and of the teacher.

        A guided network is evaluated with the prompt and without.
        """
        kappa_1, kappa_2, kappa_3, kappa_4 = self
        return 1 + (kappa_1 != 1), 1 + ((kappa_2, kappa_3) != (1, 1)), 1 + (kappa_4 != 1)

    @property
    def sampling(self) -> float:
        """The scale to sample the teacher at: kappa_4, or 1, below which diffusers guides not."""
        return max(1.0, self.eval_real)


def sampling_evaluations(num_steps: int, guidance: float) -> int:
    """Count a pipeline's evaluations for an image: two a step where diffusers guides."""
    return num_steps * (2 if guidance > 1 else 1)
