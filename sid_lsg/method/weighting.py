"""The weightings of the generator's loss by name.

The loss of a sample is divided by w, which carries no gradient. `sid` is SiD-LSG's normalizer
(method.md, phase 2). The others are `weighting_scheme` in SiD-DiT's code (arXiv 2509.25127), whose
factor is 1 / w; there alpha_t = 1 - t and sigma_t = t.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from sid_lsg.method.choices import Weighting
from sid_lsg.method.objective import WEIGHT_FLOOR, generator_weight
from sid_lsg.method.schedule import Schedule


def _floored(values: Tensor) -> Tensor:
    return values.clamp(min=WEIGHT_FLOOR)


# The factor 1 / w of (alpha_t, sigma_t) is, in this order: 1 - sigma, (1 - sigma)^2,
# 1 / max(sigma, 1e-5), 1 / max(sigma^2, 1e-5), 1 / max(sigma / alpha, 1e-5) and
# 1 / max((sigma / alpha)^2, 1e-5). Where the factor is 0, w is infinite and the loss is 0.
_OF_TIME: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "1_minus_sigma": lambda alpha, sigma: 1 / (1 - sigma),
    "1_minus_sigma_squared": lambda alpha, sigma: 1 / (1 - sigma) ** 2,
    "1_over_sigma": lambda alpha, sigma: _floored(sigma),
    "1_over_sigma2": lambda alpha, sigma: _floored(sigma**2),
    "snr_sqrt": lambda alpha, sigma: _floored(sigma / alpha),
    "snr": lambda alpha, sigma: _floored((sigma / alpha) ** 2),
}


@torch.no_grad()
def loss_divisor(
    name: Weighting, schedule: Schedule, t: Tensor, x_g: Tensor, y_real: Tensor
) -> Tensor:
    """Return w, by which the generator's loss of each sample is divided.

    Args:
        name: `sid` or its other name `sid_legacy`: mean |x_g - y_real|. The others depend on t
            alone.
        schedule: The teacher's schedule.
        t: [B], the times of the losses.
        x_g: [B, ...], the generator's latents.
        y_real: [B, ...], the teacher's guided x_0-estimate.

    Returns:
        [B].
    """
    if name in _OF_TIME:
        return _OF_TIME[name](schedule.alpha(t), schedule.sigma(t))
    return generator_weight(x_g, y_real)
