"""Check the flow schedule's algebra in float64 and its times against the formulas."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sid_lsg.method.flow import FlowSchedule
from sid_lsg.method.randomness import random_bits
from sid_lsg.method.shapes import per_sample

bounded = settings(max_examples=40, deadline=None, derandomize=True)
SHAPES = [(16, 3, 2), (6, 8), (2, 3, 2, 2)]  # an image, packed tokens, a video
times = st.lists(st.floats(0, 1), min_size=5, max_size=5).map(
    lambda t: torch.tensor(t, dtype=torch.float64)
)


def latents(seed: int, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x_0, eps = torch.randn(2, 5, *shape, generator=generator, dtype=torch.float64)
    return x_0, eps


@bounded
@given(t=times, seed=st.integers(0, 99), shape=st.sampled_from(SHAPES))
def test_noising_is_a_straight_line_with_the_velocity_as_slope(
    t: Tensor, seed: int, shape: tuple[int, ...]
) -> None:
    schedule, (x_0, eps) = FlowSchedule(), latents(seed, shape)
    x_t, v = schedule.add_noise(x_0, eps, t), schedule.target(x_0, eps, t)
    torch.testing.assert_close(x_t, x_0 + per_sample(t, x_0) * (eps - x_0))
    torch.testing.assert_close(v, eps - x_0)
    step = 0.01
    moved = schedule.add_noise(x_0, eps, t + step) - x_t
    torch.testing.assert_close(moved / step, v, rtol=1e-9, atol=1e-9)


@bounded
@given(t=times, seed=st.integers(0, 99), shape=st.sampled_from(SHAPES))
def test_the_target_gives_back_the_clean_latent(
    t: Tensor, seed: int, shape: tuple[int, ...]
) -> None:
    """The estimate of x_0 is exact for the target, and off by t times the velocity's error."""
    schedule, (x_0, eps) = FlowSchedule(), latents(seed, shape)
    x_t, v = schedule.add_noise(x_0, eps, t), schedule.target(x_0, eps, t)
    torch.testing.assert_close(schedule.x0(v, x_t, t), x_0, rtol=1e-12, atol=1e-12)
    error = torch.ones_like(v)
    off = x_0 - schedule.x0(v + error, x_t, t)
    torch.testing.assert_close(off, per_sample(t, v) * error, rtol=1e-9, atol=1e-9)
    # eps = x_t + (1 - t) v, and alpha_t and sigma_t add up to 1
    torch.testing.assert_close(x_t + per_sample(1 - t, v) * v, eps, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(schedule.alpha(t) + schedule.sigma(t), torch.ones_like(t))


def test_the_error_is_not_weighted() -> None:
    assert torch.equal(FlowSchedule().error_weight(torch.rand(4)), torch.ones(4))


@bounded
@given(
    t_init=st.integers(1, 999), steps=st.integers(1, 8), shift=st.floats(0.25, 8),
)  # fmt: skip
def test_generator_times(t_init: int, steps: int, shift: float) -> None:
    schedule = FlowSchedule(shift=shift)
    found = np.array(schedule.generator_times(t_init, steps))
    assert len(found) == steps
    assert (np.diff(found) < 0).all(), "the noisiest is first"
    t = np.array([t_init * (steps - i) / (999 * steps) for i in range(steps)])
    np.testing.assert_allclose(found, shift * t / (1 + (shift - 1) * t), rtol=1e-12)
    if t_init == 999:
        assert found[0] == pytest.approx(1, abs=1e-15)


@pytest.mark.parametrize(
    ("shift", "steps", "expected"),
    [
        (1, 1, [1]),
        (1, 2, [1, 0.5]),
        (1, 4, [1, 0.75, 0.5, 0.25]),
        (3, 1, [1]),
        (3, 4, [1, 0.9, 0.75, 0.5]),
    ],
)
def test_generator_times_from_pure_noise(shift: float, steps: int, expected: list[float]) -> None:
    """They start at exactly 1, where the first input is the noise itself, to the bit."""
    schedule = FlowSchedule(shift=shift)
    times = schedule.generator_times(999, steps)
    assert times == pytest.approx(expected)
    assert times[0] == 1
    x_0, eps = (latent.float() for latent in latents(0, (4, 3, 2)))
    assert torch.equal(schedule.add_noise(torch.zeros_like(x_0), eps, torch.ones(5)), eps)


@pytest.mark.parametrize(("location", "scale"), [(math.log(2), 1.6), (0.0, 1.0), (-1.0, 0.5)])
def test_training_times(location: float, scale: float) -> None:
    """t = sigmoid(location + scale n) in float32, whatever tmin, tmax and shift are."""
    schedule = FlowSchedule(location, scale, shift=3)
    (bits,) = random_bits({0: 2}, torch.arange(50_000), 0, 0)
    t = schedule.draw_times(bits, 20, 980)
    assert t.dtype == torch.float32
    assert torch.equal(t, schedule.draw_times(bits, 500, 501))
    assert (t > 0).all()
    assert (t < 1).all()
    logit = torch.logit(t.double())
    assert float(logit.mean()) == pytest.approx(location, abs=4 * scale / 50_000**0.5)
    assert float(logit.std()) == pytest.approx(scale, rel=0.02)


@pytest.mark.parametrize("factor", [1000.0, 1.0])
def test_the_networks_time(factor: float) -> None:
    t = torch.tensor([0.985, 0.9985, 0.75])
    time = FlowSchedule(time_factor=factor).network_time(t)
    torch.testing.assert_close(time, factor * t)
    assert time.dtype == torch.float32


def test_the_schedule_holds_no_state() -> None:
    schedule = FlowSchedule()
    assert not schedule.state_dict()
    assert len(schedule) == 1000
