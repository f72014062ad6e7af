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

    They minimize the integral of (sum_i c_i p_i - p)^2 with sum_i c_i = 1. EDM2 leaves the sum
    free, since the scale of its weights does not matter; that of other networks' weights does. With
    the newest profile p_n, the error is that of sum_i c_i (p_i - p_n) - (p - p_n), and the products
    of these differences are the normal equations.

    Args:
        snapshots: The profiles of the n snapshots, the newest last.
        wanted: The profile of the wanted average; its time is at most the newest snapshot's.

    Returns:
        [n] float64.
    """
    products = _products((*snapshots, wanted))
    newest = products[-2]
    products = products - newest - newest[:, None] + newest[-2]
    free, target = products[:-2, :-2], products[:-2, -1]
    found: Tensor = torch.linalg.lstsq(free, target, driver="gelsd").solution
    return torch.cat([found, 1 - found.sum(dim=0, keepdim=True)])


def error(snapshots: Sequence[Profile], factors: Tensor, wanted: Profile) -> float:
    """Return the L2 norm of sum_i c_i p_i - p, relative to that of p.

    Args:
        snapshots: The profiles of the n snapshots.
        factors: [n] float64, the factors c.
        wanted: The profile p.
    """
    products = _products((*snapshots, wanted))
    difference = torch.cat([factors, factors.new_tensor([-1])])
    square = difference @ products @ difference / products[-1, -1]
    return float(square.clamp(min=0).sqrt())


def _products(profiles: Sequence[Profile]) -> Tensor:
    """Return the integrals of p_i p_j, [n, n] float64."""
    return torch.tensor([[_product(a, b) for b in profiles] for a in profiles], dtype=torch.float64)


def _product(a: Profile, b: Profile) -> float:
    """Return the integral of p_a p_b (EDM2, equation 158)."""
    first, last = sorted((a, b))
    one, other = exponent(first.width), exponent(last.width)
    share = float((first.images / last.images) ** other)
    return (one + 1) * (other + 1) * share / ((one + other + 1) * last.images)
