"""Classifier-free guidance, and the four scales at which the method applies it."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sid_lsg.method.conditioning import Conditioning, Predict, concatenate, expand

EMBEDDED = "guidance"
"""In conditioning: the scale [B] that a network with a guidance embedding takes as an input."""

Rescale = Callable[[Tensor, Tensor], Tensor]
"""A guided prediction and that with the prompt -> the prediction to use."""


class Guiding(NamedTuple):
    """Settings of guidance at a scale kappa.

    Attributes:
        true_cfg: Whether by the null prompt's prediction (classifier-free guidance).
        embedded: The input of the network's guidance embedding, if it has one; None for kappa, as
            in SiD-DiT.
        rescale: What is done to a guided prediction, if anything.
    """

    true_cfg: bool = True
    embedded: float | None = None
    rescale: Rescale | None = None


USUAL = Guiding()


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
        """Return True if phase 1 drops prompts: kappa_1 != 1 or kappa_2 != 1 (method.md, phase 1).

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
        return self.evaluations_of()

    def evaluations_of(self, guiding: Guiding | None = None) -> tuple[int, int, int]:
        """Return `evaluations` of networks with a guidance embedding, if `guiding` is given."""
        kappa_1, kappa_2, kappa_3, kappa_4 = self
        scales = (kappa_1,), (kappa_2, kappa_3), (kappa_4,)
        first, second, third = (passes(*pair, guiding=guiding) for pair in scales)
        return first, second, third

    @property
    def sampling(self) -> float:
        """Return the scale for sampling the teacher: kappa_4; diffusers ignores scales below 1."""
        return max(1.0, self.eval_real)


NO_GUIDANCE = Kappas(1.0, 1.0, 1.0, 1.0)


def passes(*kappas: float, guiding: Guiding | None = None) -> int:
    """Return the NFE at some scales: 1 if all are 1 or all are 0, else 2.

    Args:
        kappas: The scales.
        guiding: How a network with a guidance embedding is guided. If kappa is its input, each
            scale needs its own evaluations. Without true CFG, they are single.
    """
    if guiding and guiding.embedded is None:
        own = guiding._replace(embedded=1.0)
        return sum(passes(kappa, guiding=own) for kappa in {*kappas})
    if guiding and not guiding.true_cfg:
        return 1
    return 1 if set(kappas) in ({1}, {0}) else 2


def sampling_evaluations(num_steps: int, guidance: float) -> int:
    """Return a pipeline's NFE: two per step at scales above 1, which diffusers guides."""
    return num_steps * (2 if guidance > 1 else 1)


class Prediction(NamedTuple):
    """A network's prediction at x_t with the prompt and, if it is guided, without it."""

    cond: Tensor
    uncond: Tensor | None = None

    def guided(self, kappa: float, rescale: Rescale | None = None) -> Tensor:
        """Guide: f_kappa = u + kappa (c - u) (Ho & Salimans, 2022; method.md, guidance).

        At kappa = 1 this is c, to the bit, and u is not needed.
        """
        if kappa == 1:
            return self.cond
        assert self.uncond is not None, "guidance needs the null prompt's prediction"
        found = self.uncond + kappa * (self.cond - self.uncond)
        return rescale(found, self.cond) if rescale else found


def predict_guided(
    predict: Predict,
    x_t: Tensor,
    t: Tensor,
    condition: Conditioning,
    null: Conditioning | None,
    kappas: Sequence[float],
    guiding: Guiding = USUAL,
) -> list[Tensor]:
    """Predict at several guidance scales from one evaluation (method.md, guidance).

    If every scale is 1, the network is evaluated only with the prompts; if every scale is 0, only
    with the empty prompt. Otherwise it is evaluated once on a doubled batch, with the prompts and
    the empty prompt. Gradients flow through both.

    If kappa is an input of the network, each scale has its own evaluation, in which prompts and
    empty prompts get that input (SiD-DiT's FLUX).

    Args:
        predict: The network.
        x_t: [B, ...].
        t: [B].
        condition: The prompts' conditioning.
        null: The null conditioning, one sample; None if every scale is 1.
        kappas: The scales.
        guiding: How the network is guided.

    Returns:
        A prediction [B, ...] for each of `kappas`.
    """
    if EMBEDDED not in condition:
        return _classifier_free(predict, x_t, t, condition, null, kappas, guiding.rescale)
    if guiding.embedded is None:
        single = {
            kappa: predict_guided(
                predict, x_t, t, condition, null, [kappa], guiding._replace(embedded=kappa)
            )[0]
            for kappa in dict.fromkeys(kappas)
        }
        return [single[kappa] for kappa in kappas]
    told = _with_scale(condition, guiding.embedded)
    if not guiding.true_cfg:
        return [predict(x_t, t, told)] * len(kappas)
    null = null and _with_scale(null, guiding.embedded)
    return _classifier_free(predict, x_t, t, told, null, kappas, guiding.rescale)


def _with_scale(condition: Conditioning, scale: float) -> Conditioning:
    return condition | {EMBEDDED: torch.full_like(condition[EMBEDDED], scale)}


def _classifier_free(
    predict: Predict,
    x_t: Tensor,
    t: Tensor,
    condition: Conditioning,
    null: Conditioning | None,
    kappas: Sequence[float],
    rescale: Rescale | None,
) -> list[Tensor]:
    if all(kappa == 1 for kappa in kappas):
        prediction = Prediction(predict(x_t, t, condition))
        return [prediction.guided(kappa) for kappa in kappas]
    assert null is not None, "guidance needs the null prompt"
    if all(kappa == 0 for kappa in kappas):
        return [predict(x_t, t, expand(null, len(x_t)))] * len(kappas)
    both = concatenate(condition, expand(null, len(x_t)))
    prediction = Prediction(*predict(torch.cat((x_t, x_t)), torch.cat((t, t)), both).chunk(2))
    return [prediction.guided(kappa, rescale) for kappa in kappas]
