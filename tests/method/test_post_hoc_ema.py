"""EMAs made after the training equal those that are kept during it."""

import pytest
import torch
from torch import Tensor

from sid_lsg.method.post_hoc_ema import WIDTHS, Profile, coefficients, error, exponent, power_beta

STEPS, BATCH = 1600, 64


def profile(images: int, width: float) -> Tensor:
    """Return the weight of each iteration's parameters in an average: the integral of p over it."""
    steps = torch.arange(STEPS + 1, dtype=torch.float64).clamp(max=images / BATCH)
    return (steps / (images / BATCH)).pow(exponent(width) + 1).diff()


def test_the_recursion_has_this_profile() -> None:
    found = torch.zeros(STEPS, dtype=torch.float64)
    for step in range(STEPS):
        beta = power_beta(BATCH, step * BATCH, 0.1)
        found *= beta
        found[step] += 1 - beta
    torch.testing.assert_close(found, profile(STEPS * BATCH, 0.1), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("width", [0.02, 0.05, 0.1, 0.25])
def test_the_width_is_the_standard_deviation_of_the_profile(width: float) -> None:
    weights = profile(STEPS * BATCH, width)
    times = (torch.arange(STEPS, dtype=torch.float64) + 0.5) / STEPS
    mean = (weights * times).sum()
    deviation = (weights * (times - mean).square()).sum().sqrt()
    assert weights.sum() == pytest.approx(1, rel=1e-12)
    assert float(deviation) == pytest.approx(width, rel=2e-3)


def test_published_exponents() -> None:
    """EDM2, section 3.1: sigma_rel 0.05 and 0.10 are gamma = 16.97 and 6.94."""
    assert exponent(0.05) == pytest.approx(16.97, abs=5e-3)
    assert exponent(0.10) == pytest.approx(6.94, abs=5e-3)


@pytest.mark.parametrize("width", [0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.25])
def test_any_width_from_the_snapshots_of_two(width: float) -> None:
    """The profile of 20 snapshots is within 6.1% of the wanted one, and of 80 within 1.2%.

    Factors that do not sum to 1 would come 0.1% nearer, but scale the weights by 0.99.
    """

    def found(every: int) -> float:
        ends = range(every * BATCH, STEPS * BATCH + 1, every * BATCH)
        profiles = [Profile(images, one) for images in ends for one in WIDTHS]
        asked = Profile(STEPS * BATCH, width)
        factors = coefficients(profiles, asked)
        assert float(factors.sum()) == pytest.approx(1, abs=1e-9)
        made = factors @ torch.stack([profile(*one) for one in profiles])
        wanted = profile(STEPS * BATCH, width)
        relative = float((made - wanted).norm() / wanted.norm())
        assert error(profiles, factors, asked) == pytest.approx(relative, rel=0.02, abs=1e-6)
        return relative

    few, many = found(STEPS // 20), found(STEPS // 80)
    assert few < 0.061
    assert many < 0.012
    assert many < few / 4 or width in WIDTHS


def test_a_width_that_was_kept_is_its_snapshot() -> None:
    profiles = [Profile(images, width) for images in (6400, 12800) for width in WIDTHS]
    factors = coefficients(profiles, Profile(12800, 0.1))
    torch.testing.assert_close(factors, torch.tensor([0.0, 0, 0, 1], dtype=torch.float64))
