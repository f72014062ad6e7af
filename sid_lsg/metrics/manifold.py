"""Distances between feature sets: precision, recall, density, coverage, KID, CMMD.

Features are [N, D] and [M, D] of any floating dtype. All computations are in float64 over all
pairs, in blocks of at most [chunk, M], without random sampling.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from sid_lsg.messages.errors import UsageError


class Overlap(NamedTuple):
    """Precision, recall, density and coverage of two feature sets, float64 scalars."""

    precision: Tensor
    recall: Tensor
    density: Tensor
    coverage: Tensor


def overlap(
    generated: Tensor,
    reference: Tensor,
    k: int = 3,
    chunk: int = 4096,
    reference_radii: Tensor | None = None,
) -> Overlap:
    """Compute precision, recall, density and coverage in one pass over all pairs.

    The radius r_i of the ball around a point y_i is the distance to the k-th nearest other point of
    the same set. Points on the surface are inside.

        precision: the share of generated points within some reference ball
        recall:    the share of reference points within some generated ball
                   (Kynkäänniemi et al., 2019)
        density  = sum_ij [|x_j - y_i| <= r_i] / (k N)      of N generated points x_j
        coverage = mean_i [min_j |x_j - y_i| <= r_i]        of M reference balls (y_i, r_i)
                   (Naeem et al., 2020)

    Args:
        generated: [N, D].
        reference: [M, D].
        k: Rank of the neighbour that sets the radius.
        chunk: Rows of the distance matrix per block; does not change the result.
        reference_radii: `kth_distances` of the reference [M], if known.

    Raises:
        UsageError: If a set has fewer than k + 1 points, or their dimensions differ.
    """
    _check(len(generated), k + 1, chunk, "generated")
    _check(len(reference), k + 1, chunk, "reference")
    x, y = _centred(generated, reference)
    if reference_radii is None:
        reference_radii = _kth(y, y, k, chunk, exclude_self=True)
    balls_x = _kth(x, x, k, chunk, exclude_self=True).square()[:, None]
    balls_y = reference_radii.square()
    pairs = x.new_zeros((), dtype=torch.int64)
    realistic = x.new_zeros(len(x), dtype=torch.bool)
    covered, recalled = x.new_zeros(2, len(y), dtype=torch.bool)
    for rows, squared in _squared_distances(x, y, chunk):
        inside = squared <= balls_y
        pairs += inside.count_nonzero()
        realistic[rows] = inside.any(1)
        covered |= inside.any(0)
        recalled |= (squared <= balls_x[rows]).any(0)
    precision, recall, coverage = (held.double().mean() for held in (realistic, recalled, covered))
    return Overlap(precision, recall, pairs.double() / (k * len(x)), coverage)


def kernel_distance(x: Tensor, y: Tensor, chunk: int = 4096) -> Tensor:
    """Return the unbiased estimate of MMD^2 over all pairs (Bińkowski et al., 2018).

        mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean_ij k(x_i, y_j)
        k(a, b) = (a.b / D + 1)^3

    Often called KID. It can be negative because it is unbiased. Features are not centred, because
    the kernel is not invariant to translation.

    Raises:
        UsageError: If a set has fewer than two points, or their dimensions differ.
    """
    _check(min(len(x), len(y)), 2, chunk, "generated or reference")
    x, y = _paired(x, y)
    within = _kernel_mean(_cubic, x, x, chunk, True) + _kernel_mean(_cubic, y, y, chunk, True)
    return within - 2 * _kernel_mean(_cubic, x, y, chunk, False)


def gaussian_distance(x: Tensor, y: Tensor, sigma: float, chunk: int = 4096) -> Tensor:
    """Return the biased estimate of MMD^2 over all pairs (Gretton et al., 2012, eq. 5).

        mean_ij k(x_i, x_j) + mean_ij k(y_i, y_j) - 2 mean_ij k(x_i, y_j)
        k(a, b) = exp(-|a - b|^2 / (2 sigma^2))

    Raises:
        UsageError: If a set is empty, or their dimensions differ.
    """
    _check(min(len(x), len(y)), 1, chunk, "generated or reference")
    x, y = _paired(x, y)
    kernel = partial(_gaussian, sigma=sigma)
    within = _kernel_mean(kernel, x, x, chunk, False) + _kernel_mean(kernel, y, y, chunk, False)
    return within - 2 * _kernel_mean(kernel, x, y, chunk, False)


def kth_distances(x: Tensor, k: int, chunk: int = 4096) -> Tensor:
    """Return each point's distance [N] to its k-th nearest other point; duplicates count.

    Raises:
        UsageError: If there are fewer than k + 1 points.
    """
    _check(len(x), k + 1, chunk, "given")
    x, y = _centred(x, x)
    return _kth(x, y, k, chunk, exclude_self=True)


def nearest_distances(
    x: Tensor, y: Tensor, chunk: int = 4096, exclude_self: bool = False
) -> Tensor:
    """Return the distance [N] from each point of x to the nearest of y.

    With `exclude_self`, x and y are the same set, and x_i is not compared with y_i. Duplicates of
    it still count.

    Raises:
        UsageError: If y has no point to compare with, or the dimensions differ.
    """
    _check(len(y), 1 + exclude_self, chunk, "reference")
    x, y = _centred(x, y)
    return _kth(x, y, 1, chunk, exclude_self)


def _kth(x: Tensor, y: Tensor, k: int, chunk: int, exclude_self: bool) -> Tensor:
    if k < 1:
        raise UsageError(f"k = {k}: give a rank of 1 or more.")
    distances = x.new_empty(len(x))
    for rows, squared in _squared_distances(x, y, chunk):
        if exclude_self:
            squared.diagonal(offset=rows.start).fill_(math.inf)
        kth = squared.topk(k, largest=False).indices[:, -1]
        # Recompute from the difference: exact for near points, zero for duplicates.
        distances[rows] = (x[rows] - y[kth]).norm(dim=1)
    return distances


def _squared_distances(x: Tensor, y: Tensor, chunk: int) -> Iterator[tuple[slice, Tensor]]:
    """Yield |x_i|^2 + |y_j|^2 - 2 x_i.y_j in blocks [at most chunk, M] of one reused buffer.

    The values are lower bounds, reduced by the largest possible rounding error. So a point on the
    surface of a ball, such as a duplicate, is inside for every block size.
    """
    down = 1 - 8 * math.sqrt(x.shape[1]) * torch.finfo(torch.float64).eps
    x_norms, y_norms = (down * points.square().sum(1) for points in (x, y))
    buffer = x.new_empty(min(chunk, len(x)), len(y))
    for start in range(0, len(x), chunk):
        rows = slice(start, min(start + chunk, len(x)))
        squared = torch.mm(x[rows], y.T, out=buffer[: rows.stop - start])
        yield rows, squared.mul_(-2).add_(x_norms[rows, None]).add_(y_norms)


def _kernel_mean(
    kernel: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor, chunk: int, exclude_self: bool
) -> Tensor:
    total = x.new_zeros(())
    for start in range(0, len(x), chunk):
        values = kernel(x[start : start + chunk], y)
        if exclude_self:
            values.diagonal(offset=start).zero_()
        total += values.sum()
    return total / (len(x) * (len(y) - exclude_self))


def _cubic(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T).div_(x.shape[1]).add_(1).pow_(3)


def _gaussian(x: Tensor, y: Tensor, sigma: float) -> Tensor:
    squared = (x @ y.T).mul_(-2).add_(x.square().sum(1)[:, None]).add_(y.square().sum(1))
    return squared.div_(-2 * sigma**2).exp_()


def _centred(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Subtract the mean of y from both, in float64.

    Distances do not change. Far from the origin, |x|^2 + |y|^2 - 2 x.y would cancel to noise.
    """
    x, y = _paired(x, y)
    mean = y.mean(0)
    return x - mean, y - mean


def _paired(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    if x.dim() != 2 or y.dim() != 2 or x.shape[1] != y.shape[1]:
        raise UsageError(
            f"features of shapes {list(x.shape)} and {list(y.shape)} cannot be compared. Give "
            "[images, dimensions] of one feature network."
        )
    return x.detach().double(), y.detach().double()


def _check(count: int, needed: int, chunk: int, which: str) -> None:
    if chunk < 1:
        raise UsageError(f"chunk = {chunk}: give 1 row per block or more.")
    if count < needed:
        raise UsageError(
            f"{count} {which} images: at least {needed} are needed to have neighbours. Give more."
        )
