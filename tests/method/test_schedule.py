"""Compare the schedule with numpy in float64; eps, v and x_0 are consistent."""

from fractions import Fraction
from math import floor
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from sid_lsg.method.schedule import PREDICTION_TYPES, DiscreteSchedule
from sid_lsg.method.shapes import per_sample

ABAR: NDArray[Any] = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
T = 1000
FLOAT32: dict[str, Any] = {"rtol": 1e-6, "atol": 1e-6}  # the precision of the schedule


def make(prediction_type: Any, abar: NDArray[Any] = ABAR) -> DiscreteSchedule:
    return DiscreteSchedule.from_alphas_cumprod(torch.from_numpy(abar), prediction_type)


def latents(seed: int, count: int = 2, batch: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, batch, 4, 3, 2, generator=generator, dtype=torch.float64)


timesteps = st.lists(st.integers(0, T - 1), min_size=5, max_size=5).map(torch.tensor)
bounded = settings(max_examples=40, deadline=None, derandomize=True)


def test_coefficients_are_the_roots_of_alphas_cumprod() -> None:
    schedule, t = make("epsilon"), torch.arange(T)
    assert len(schedule) == T
    assert schedule.alpha(t).shape == schedule.sigma(t).shape == (T,)
    np.testing.assert_allclose(schedule.alpha(t), np.sqrt(ABAR), rtol=1e-6)
    np.testing.assert_allclose(schedule.sigma(t), np.sqrt(1 - ABAR), rtol=1e-6)


def test_the_coefficients_are_non_persistent_buffers() -> None:
    schedule = make("epsilon")
    assert not schedule.state_dict()
    assert {name for name, _ in schedule.named_buffers()} == {"alphas", "sigmas"}
    assert schedule.alphas.dtype == schedule.sigmas.dtype == torch.float32


def test_every_sample_has_a_different_timestep() -> None:
    x_0, eps = latents(0)
    t = torch.tensor([0, 20, 625, 979, 999])
    shape = (5, 1, 1, 1)
    a, s = (torch.from_numpy(np.sqrt(x))[t].view(shape) for x in (ABAR, 1 - ABAR))
    schedule = make("v_prediction")
    torch.testing.assert_close(schedule.add_noise(x_0, eps, t), a * x_0 + s * eps, **FLOAT32)
    torch.testing.assert_close(schedule.velocity(x_0, eps, t), a * eps - s * x_0, **FLOAT32)


def test_adding_noise_keeps_the_variance() -> None:
    x_0, eps = torch.randn(2, 4, 4, 50, 50, generator=torch.Generator().manual_seed(0))
    x_t = make("epsilon").add_noise(x_0, eps, torch.tensor([0, 300, 625, 999]))
    assert x_t.var(dim=(1, 2, 3)).tolist() == pytest.approx([1.0] * 4, abs=0.06)


@bounded
@given(t=timesteps, seed=st.integers(0, 99), prediction_type=st.sampled_from(PREDICTION_TYPES))
def test_x0_inverts_the_target(t: Tensor, seed: int, prediction_type: str) -> None:
    schedule, (x_0, eps) = make(prediction_type), latents(seed)
    x_t = schedule.add_noise(x_0, eps, t)
    torch.testing.assert_close(schedule.x0(schedule.target(x_0, eps, t), x_t, t), x_0, **FLOAT32)


@bounded
@given(t=timesteps, seed=st.integers(0, 99))
def test_eps_and_v_predictions_give_the_same_x0(t: Tensor, seed: int) -> None:
    x_t, v = latents(seed)
    of_eps, of_v = make("epsilon"), make("v_prediction")
    a, s = (per_sample(scale, v) for scale in (of_v.alpha(t), of_v.sigma(t)))
    eps = a * v + s * x_t  # rotates (x_t, v) back to (x_0, eps)
    torch.testing.assert_close(of_eps.x0(eps, x_t, t), of_v.x0(v, x_t, t), rtol=3e-5, atol=3e-5)


@bounded
@given(t=timesteps, seed=st.integers(0, 99))
def test_the_weighted_error_of_v_is_the_error_of_eps(t: Tensor, seed: int) -> None:
    schedule = make("v_prediction")
    x_0, eps, wrong = latents(seed, count=3)
    x_t, v = schedule.add_noise(x_0, eps, t), schedule.velocity(x_0, eps, t)
    a, s = (per_sample(scale, v) for scale in (schedule.alpha(t), schedule.sigma(t)))
    eps_error = (a * (v + wrong) + s * x_t) - (a * v + s * x_t)
    weight = per_sample(schedule.error_weight(t), wrong)
    torch.testing.assert_close(weight * wrong**2, eps_error**2)


@pytest.mark.parametrize("t", [0, 20, 625, 979, 999])
def test_the_weight_of_v_is_snr_over_snr_plus_one(t: int) -> None:
    snr = ABAR[t] / (1 - ABAR[t])
    at = torch.tensor([t])
    assert make("v_prediction").error_weight(at).item() == pytest.approx(snr / (snr + 1), rel=1e-6)
    assert make("epsilon").error_weight(at).tolist() == [1.0]


@pytest.mark.parametrize("shape", [(5, 7), (5, 16, 64), (5, 16, 3, 4, 4)])
def test_latents_may_have_any_shape(shape: tuple[int, ...]) -> None:
    """Packed tokens and videos get the same numbers as images."""
    t = torch.tensor([0, 20, 625, 979, 999])
    generator = torch.Generator().manual_seed(0)
    x_0, eps = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    for prediction_type in PREDICTION_TYPES:
        schedule = make(prediction_type)
        images = [x.reshape(5, -1, 1, 1) for x in (x_0, eps)]
        x_t, target = schedule.add_noise(x_0, eps, t), schedule.target(x_0, eps, t)
        assert torch.equal(x_t.reshape_as(images[0]), schedule.add_noise(*images, t))
        assert torch.equal(target.reshape_as(images[0]), schedule.target(*images, t))
        torch.testing.assert_close(schedule.x0(target, x_t, t), x_0, **FLOAT32)


@pytest.mark.parametrize(
    ("num_steps", "expected"), [(1, [625]), (2, [625, 312]), (4, [625, 468, 312, 156])]
)
def test_generator_times_of_the_method(num_steps: int, expected: list[int]) -> None:
    assert make("epsilon").generator_times(625, num_steps) == expected


@settings(max_examples=100, deadline=None, derandomize=True)
@given(data=st.data(), t_init=st.integers(1, 999))
def test_generator_times_are_exact_and_decrease_from_t_init(
    data: st.DataObject, t_init: int
) -> None:
    count = data.draw(st.integers(1, min(t_init, 50)))
    timesteps = make("epsilon").generator_times(t_init, count)
    assert timesteps == [floor(t_init * (1 - Fraction(i, count))) for i in range(count)]
    assert timesteps[0] == t_init
    assert all(a > b for a, b in zip(timesteps, [*timesteps[1:], 0], strict=True))


def test_x0_is_not_clipped() -> None:
    schedule, t = make("epsilon"), torch.tensor([999])
    x_0 = schedule.x0(torch.zeros(1, 1, 1, 1), torch.full((1, 1, 1, 1), 50.0), t)
    assert x_0.item() == pytest.approx(50 / ABAR[999] ** 0.5, rel=1e-5)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_gradients_of_x0(prediction_type: str) -> None:
    schedule, t = make(prediction_type), torch.tensor([20, 625])
    prediction, x_t = latents(1, batch=2).requires_grad_()
    torch.autograd.gradcheck(lambda p, x: schedule.x0(p, x, t), (prediction, x_t))
