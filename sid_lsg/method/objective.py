"""The objective of SiD-LSG (arXiv 2406.01561): guidance, and the losses of the two networks.

Latents and predictions are [B, C, H, W]; a loss is [B], one sum over channels and pixels per
sample. Whoever trains adds the samples up and divides by the batch.
"""

from typing import NamedTuple

from torch import Tensor

# Where the generator meets the teacher exactly, w = |x_g - y_real| = 0: 1/w must stay finite.
WEIGHT_FLOOR = 1e-5


class Prediction(NamedTuple):
    """What one network says at x_t with the prompt (`cond`) and without it (`uncond`).

    `uncond` is None where no guidance scale asks for it.
    """

    cond: Tensor
    uncond: Tensor | None = None

    def guided(self, kappa: float) -> Tensor:
        """Guide: f_kappa = u + kappa (c - u), classifier-free guidance (Ho & Salimans, 2022).

        At kappa = 1 this is c, to the bit, and u is not needed.
        """
        if kappa == 1:
            return self.cond
        assert self.uncond is not None, "guidance needs the null prompt's prediction"
        return self.uncond + kappa * (self.cond - self.uncond)


def fake_score_loss(prediction: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Denoising loss of the fake score at the generator's own samples (phase 1).

        sum over C, H, W of  weight * (f_psi(x_t, t; kappa_1) - target)^2

    Args:
        prediction: The fake score's guided output at kappa_1.
        target: eps, or the velocity, as the networks predict it.
        weight: [B, 1, 1, 1], `NoiseSchedule.eps_weight`.

    Returns:
        [B] loss of each sample.
    """
    return (weight * (prediction - target).square()).sum(dim=(1, 2, 3))


def generator_weight(x_g: Tensor, y_real: Tensor) -> Tensor:
    """Return w = mean over C, H, W of |x_g - y_real|, at least 1e-5, without gradient.

    The generator loss is divided by it, which evens out its scale over timesteps and samples (the
    weighting of DMD, Yin et al., 2023).

    Returns:
        [B, 1, 1, 1].
    """
    distance = (x_g - y_real).detach().abs().mean(dim=(1, 2, 3), keepdim=True)
    return distance.clamp(min=WEIGHT_FLOOR)


def generator_loss(
    x_g: Tensor, y_real: Tensor, y_fake_2: Tensor, y_fake_3: Tensor, weight: Tensor, alpha: float
) -> Tensor:
    """Score-identity loss of the generator (phase 2).

        sum over C, H, W of  (y_real - y_fake_2) * ((y_real - x_g) - alpha (y_real - y_fake_3)) / w

    At alpha = 1 and kappa_2 = kappa_3 this is (y_real - y_fake) * (y_fake - x_g) / w. It may be
    negative. Gradients flow into x_g directly and through both networks.

    Args:
        x_g: The generator's latents.
        y_real: The teacher's guided x_0-estimate at x_t (kappa_4).
        y_fake_2: The fake score's at kappa_2, for the first factor.
        y_fake_3: The fake score's at kappa_3, for the second factor.
        weight: w, `generator_weight`.
        alpha: Weight of the second term.

    Returns:
        [B] loss of each sample.
    """
    toward_teacher = y_real - y_fake_2
    correction = (y_real - x_g) - alpha * (y_real - y_fake_3)
    return (toward_teacher * correction / weight).sum(dim=(1, 2, 3))
