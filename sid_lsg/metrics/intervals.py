"""Confidence intervals by bootstrap over prompts, and comparisons of two models by prompt."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

RESAMPLES = 1000
_LEVELS = (0.025, 0.975)
_ROWS = 1 << 22  # drawn prompts at a time


class Interval(NamedTuple):
    """A mean over images and the bounds of its 95% interval; NaN for a single prompt."""

    mean: float
    low: float
    high: float


class Pair(NamedTuple):
    """Two models on the same prompts.

    Attributes:
        difference: The first one's mean minus the second one's.
        wins: Share of the prompts whose images have a larger mean with the first.
        ties: Share of the prompts with equal means.
    """

    difference: Interval
    wins: float
    ties: float


def groups_of(prompts: Sequence[str]) -> np.ndarray:
    """Return the number of each image's prompt [N] int64, in the order of first appearance."""
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(prompt, len(numbers)) for prompt in prompts], np.int64)


def interval(values: Sequence[float] | np.ndarray, groups: np.ndarray) -> Interval:
    """Return the mean of values [N] and its interval by the percentile bootstrap.

    Prompts are drawn with replacement, each with all its images, since images of one prompt are not
    independent (Efron and Tibshirani, 1993, section 8.5). The draws are always the same.

    Args:
        values: A score of each image.
        groups: The number of each image's prompt (`groups_of`).
    """
    numbers = np.asarray(values, np.float64)
    sums = np.bincount(groups, numbers)
    counts = np.bincount(groups)
    prompts = len(counts)
    if prompts < 2:
        return Interval(float(numbers.mean()), float("nan"), float("nan"))
    generator = np.random.default_rng(0)
    means = []
    for start in range(0, RESAMPLES, step := max(1, _ROWS // prompts)):
        size = min(step, RESAMPLES - start)
        drawn = generator.integers(0, prompts, (size, prompts))
        means.append(sums[drawn].sum(1) / counts[drawn].sum(1))
    low, high = np.quantile(np.concatenate(means), _LEVELS)
    return Interval(float(numbers.mean()), float(low), float(high))


def pair(first: Sequence[float], second: Sequence[float], groups: np.ndarray) -> Pair:
    """Compare a score [N] of two models on the same images' prompts; arguments as `interval`."""
    differences = np.asarray(first, np.float64) - np.asarray(second, np.float64)
    sums = np.bincount(groups, differences)
    return Pair(interval(differences, groups), float((sums > 0).mean()), float((sums == 0).mean()))
