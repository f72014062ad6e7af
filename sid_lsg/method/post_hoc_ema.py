"""EMAs of any width from the snapshots of two, after the training (EDM2, arXiv 2312.02696, 3).

A power-function average at time t weights the weights of time s <= t with

    p(s) = (gamma + 1) s^gamma / t^(gamma + 1).

Its width is the standard deviation of p relative to t:

    sqrt(gamma + 1) / ((gamma + 2) sqrt(gamma + 3)).

Times are images seen. All numbers here are float64.
"""

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

WIDTHS = (0.05, 0.10)
"""The widths that are averaged during the training, as in EDM2."""

WIDEST = 0.25
"""The largest width that can be made; 0.289 would be the mean of all weights so far."""


class Profile(NamedTuple):
    """The profile p of an average.

    Attributes:
        images: The time t of the average, in images seen.
        width: Its relative width.
    """

    images: int
    width: float


@cache
def exponent(width: float) -> float:
    """Return gamma of a relative width, by bisection, since the width falls with gamma."""
    low, high = 0.0, 1e9
    for _ in range(200):
        middle = (low + high) / 2
        found = (middle + 1) ** 0.5 / ((middle + 2) * (middle + 3) ** 0.5)
        low, high = (middle, high) if found > width else (low, middle)
    return (low + high) / 2


def power_beta(batch_size: int, images_seen: int, width: float) -> float:
    """Return beta, the weight of the old average (EDM2, equation 127).

        beta = (1 - batch / t)^(gamma + 1),  t = images seen + batch

    Args:
        batch_size: Global batch, images per iteration.
        images_seen: Images seen before this iteration; at 0 the average becomes a copy.
        width: The average's relative width.
    """
    return float((images_seen / (images_seen + batch_size)) ** (exponent(width) + 1))


def coefficients(snapshots: Sequence[Profile], wanted: Profile) -> Tensor:
    """Return the factors of the snapshots whose sum is nearest to a wanted average (EDM2, 3.2).

    They minimize the integral of (sum_i c_i p_i - p)^2: the products <p_i, p_j> and <p_i, p> are
    the normal equations.

    Args:
        snapshots: The profiles of the n snapshots.
        wanted: The profile of the wanted average; its time is at most the newest snapshot's.

    Returns:
        [n] float64.
    """
    products = torch.tensor(
        [[_product(a, b) for b in (*snapshots, wanted)] for a in snapshots], dtype=torch.float64
    )
    found: Tensor = torch.linalg.lstsq(products[:, :-1], products[:, -1], driver="gelsd").solution
    return found


def _product(a: Profile, b: Profile) -> float:
    """Return the integral of p_a p_b (EDM2, equation 158)."""
    first, last = sorted((a, b))
    one, other = exponent(first.width), exponent(last.width)
    share = float((first.images / last.images) ** other)
    return (one + 1) * (other + 1) * share / ((one + other + 1) * last.images)
