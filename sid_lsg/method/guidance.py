"""Classifier-free guidance, and the four scales at which the method applies it."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sid_lsg.method.conditioning import Conditioning, Predict, concatenate, expand


class Kappas(NamedTuple):
    """kappa_1..kappa_4 (SiD-LSG, arXiv 2406.01561); 1 means no guidance, 0 no prompt.

    Attributes:
        train_fake: kappa_1, on the fake score while it is trained.
        eval_fake_2: kappa_2, on the fake score in the first factor of the generator's loss.
        eval_fake_3: kappa_3, on the fake score in the second factor.
        eval_real: kappa_4, on the teacher in the generator's loss.
    """

    train_fake: float
    eval_fake_2: float
    eval_fake_3: float
    eval_real: float

    @property
    def guided(self) -> bool:
        """Return True if any scale is not 1, so the empty prompt is needed."""
        return any(kappa != 1 for kappa in self)

    @property
    def drops_prompts(self) -> bool:
        """Return True if phase 1 drops prompts: kappa_1 != 1 or kappa_2 != 1 (METHOD.md, phase 1).

        These scales guide the fake score in phase 1 and in phase 2's first factor. kappa_3 and
        kappa_4 do not count.
        """
        return self.train_fake != 1 or self.eval_fake_2 != 1

    @property
    def evaluations(self) -> tuple[int, int, int]:
        """Return the NFE of the fake score in phase 1 and phase 2, and of the teacher in phase 2.

        A guided network is evaluated with and without the prompt, and one at kappa = 0 only
        without it.
        """
        kappa_1, kappa_2, kappa_3, kappa_4 = self
        return passes(kappa_1), passes(kappa_2, kappa_3), passes(kappa_4)

    @property
    def sampling(self) -> float:
        """Return the scale for sampling the teacher: kappa_4; diffusers ignores scales below 1."""
        return max(1.0, self.eval_real)


NO_GUIDANCE = Kappas(1.0, 1.0, 1.0, 1.0)


def passes(*kappas: float) -> int:
    """Return the NFE at some scales: 1 if all are 1 or all are 0, else 2."""
    return 1 if set(kappas) in ({1}, {0}) else 2


def sampling_evaluations(num_steps: int, guidance: float) -> int:
    """Return a pipeline's NFE: two per step at scales above 1, which diffusers guides."""
    return num_steps * (2 if guidance > 1 else 1)


class Prediction(NamedTuple):
    """A network's prediction at x_t with the prompt and, if it is guided, without it."""

    cond: Tensor
    uncond: Tensor | None = None

    def guided(self, kappa: float) -> Tensor:
        """Guide: f_kappa = u + kappa (c - u) (Ho & Salimans, 2022; METHOD.md, guidance).

        At kappa = 1 this is c, to the bit, and u is not needed.
        """
        if kappa == 1:
            return self.cond
        assert self.uncond is not None, "guidance needs the null prompt's prediction"
        return self.uncond + kappa * (self.cond - self.uncond)


def predict_guided(
    predict: Predict,
    x_t: Tensor,
    t: Tensor,
    condition: Conditioning,
    null: Conditioning | None,
    kappas: Sequence[float],
) -> list[Tensor]:
    """Predict at several guidance scales from one evaluation (METHOD.md, guidance).

    If every scale is 1, the network is evaluated only with the prompts; if every scale is 0, only
    with the empty prompt. Otherwise it is evaluated once on a doubled batch, with the prompts and
    the empty prompt. Gradients flow through both.

    Args:
        predict: The network.
        x_t: [B, ...].
        t: [B].
        condition: The prompts' conditioning.
        null: The null conditioning, one sample; None if every scale is 1.
        kappas: The scales.

    Returns:
        A prediction [B, ...] for each of `kappas`.
    """
    if all(kappa == 1 for kappa in kappas):
        prediction = Prediction(predict(x_t, t, condition))
        return [prediction.guided(kappa) for kappa in kappas]
    assert null is not None, "guidance needs the null prompt"
    if all(kappa == 0 for kappa in kappas):
        return [predict(x_t, t, expand(null, len(x_t)))] * len(kappas)
    both = concatenate(condition, expand(null, len(x_t)))
    prediction = Prediction(*predict(torch.cat((x_t, x_t)), torch.cat((t, t)), both).chunk(2))
    return [prediction.guided(kappa) for kappa in kappas]
