"""Intervals by bootstrap over prompts, and models compared by prompt."""

import math

import numpy as np
import pytest

from sid_lsg.metrics import intervals
from sid_lsg.metrics.intervals import groups_of, interval, pair


def draw(prompts: int, each: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return values that differ more between prompts than within one, and their groups."""
    random = np.random.default_rng(seed)
    levels = random.normal(0.3, 0.05, prompts)
    values = levels[:, None] + random.normal(0, 0.005, (prompts, each))
    return values.T.flatten(), np.tile(np.arange(prompts), each)  # as images i modulo prompts


@pytest.mark.parametrize(("prompts", "each"), [(400, 1), (400, 5), (60, 20)])
def test_intervals_are_those_of_the_means_of_prompts(prompts: int, each: int) -> None:
    """With equally many images per prompt: the standard error of the prompts' means."""
    values, groups = draw(prompts, each)
    found = interval(values, groups)
    means = values.reshape(each, prompts).mean(0)
    half = 1.96 * means.std() / math.sqrt(prompts)
    assert found.mean == pytest.approx(values.mean(), rel=1e-12)
    assert found.low == pytest.approx(found.mean - half, abs=0.15 * half)
    assert found.high == pytest.approx(found.mean + half, abs=0.15 * half)


def test_intervals_are_quantiles_of_resampled_means(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(1)
    groups = np.concatenate([np.arange(7), random.integers(0, 7, 20)])  # unequal numbers of images
    values = random.normal(size=27)
    found = interval(values, groups)
    drawn = np.random.default_rng(0).integers(0, 7, (intervals.RESAMPLES, 7))
    means = []
    for prompts in drawn:
        chosen = np.concatenate([values[groups == prompt] for prompt in prompts])
        means.append(chosen.mean())
    expected = np.percentile(means, [2.5, 97.5])
    np.testing.assert_allclose([found.low, found.high], expected, rtol=1e-12)
    monkeypatch.setattr(intervals, "_ROWS", 50)  # seven resamples at a time
    np.testing.assert_allclose(interval(values, groups), found, rtol=1e-12)


def test_one_prompt_has_no_interval() -> None:
    found = interval([1.0, 2.0], np.array([0, 0]))
    assert found.mean == 1.5
    assert math.isnan(found.low)
    assert math.isnan(found.high)


def test_pairs_count_prompts_not_images() -> None:
    groups = groups_of(["a", "b", "c", "a", "b", "c", "a"])
    assert groups.tolist() == [0, 1, 2, 0, 1, 2, 0]
    first = [1.0, 5.0, 3.0, 9.0, 5.0, 0.0, 1.0]
    second = [2.0, 5.0, 3.0, 1.0, 5.0, 1.0, 2.0]
    found = pair(first, second, groups)
    assert found.wins == 1 / 3  # a, by its mean
    assert found.ties == 1 / 3  # b
    assert found.difference.mean == pytest.approx(np.mean(first) - np.mean(second))


def test_a_pairs_interval_is_narrower_than_those_of_the_models() -> None:
    values, groups = draw(200, 2)
    noise = np.random.default_rng(5).normal(0.001, 0.002, len(values))
    both = pair((values + noise).tolist(), values.tolist(), groups)
    alone = interval(values, groups)
    assert both.difference.high - both.difference.low < 0.2 * (alone.high - alone.low)
    assert both.difference.low > 0
