"""The schedule against numpy in float64; eps, v and x_0 say the same thing."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from sid_lsg.method.schedule import PREDICTION_TYPES, NoiseSchedule

ABAR: NDArray[Any] = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
T = 1000
FLOAT32: dict[str, Any] = {"rtol": 1e-6, "atol": 1e-6}  # the schedule's own precision


def make(prediction_type: Any, abar: NDArray[Any] = ABAR) -> NoiseSchedule:
    return NoiseSchedule.from_alphas_cumprod(torch.from_numpy(abar), prediction_type)


def latents(seed: int, count: int = 2, batch: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, batch, 4, 3, 2, generator=generator, dtype=torch.float64)


timesteps = st.lists(st.integers(0, T - 1), min_size=5, max_size=5).map(torch.tensor)
bounded = settings(max_examples=40, deadline=None, derandomize=True)


def test_coefficients_are_the_roots_of_the_cumulative_product() -> None:
    schedule, t = make("epsilon"), torch.arange(T)
    assert len(schedule) == T
    assert schedule.alpha(t).shape == schedule.sigma(t).shape == (T, 1, 1, 1)
    np.testing.assert_allclose(schedule.alpha(t).flatten(), np.sqrt(ABAR), rtol=1e-6)
    np.testing.assert_allclose(schedule.sigma(t).flatten(), np.sqrt(1 - ABAR), rtol=1e-6)


def test_the_schedule_is_in_no_checkpoint_and_follows_the_module() -> None:
    schedule = make("epsilon")
    assert not schedule.state_dict()
    assert {name for name, _ in schedule.named_buffers()} == {"alphas", "sigmas"}
    assert schedule.alphas.dtype == schedule.sigmas.dtype == torch.float32


def test_every_sample_has_its_own_timestep() -> None:
    x_0, eps = latents(0)
    t = torch.tensor([0, 20, 625, 979, 999])
    shape = (5, 1, 1, 1)
    a, s = (torch.from_numpy(np.sqrt(x))[t].view(shape) for x in (ABAR, 1 - ABAR))
    schedule = make("v_prediction")
    torch.testing.assert_close(schedule.add_noise(x_0, eps, t), a * x_0 + s * eps, **FLOAT32)
    torch.testing.assert_close(schedule.velocity(x_0, eps, t), a * eps - s * x_0, **FLOAT32)


def test_diffusing_keeps_the_variance() -> None:
    x_0, eps = torch.randn(2, 4, 4, 50, 50, generator=torch.Generator().manual_seed(0))
    x_t = make("epsilon").add_noise(x_0, eps, torch.tensor([0, 300, 625, 999]))
    assert x_t.var(dim=(1, 2, 3)).tolist() == pytest.approx([1.0] * 4, abs=0.06)


@bounded
@given(t=timesteps, seed=st.integers(0, 99), prediction_type=st.sampled_from(PREDICTION_TYPES))
def test_the_target_gives_back_the_clean_latent(t: Tensor, seed: int, prediction_type: str) -> None:
    schedule, (x_0, eps) = make(prediction_type), latents(seed)
    x_t = schedule.add_noise(x_0, eps, t)
    torch.testing.assert_close(schedule.x0(schedule.target(x_0, eps, t), x_t, t), x_0, **FLOAT32)


@bounded
@given(t=timesteps, seed=st.integers(0, 99))
def test_eps_and_v_of_the_same_network_give_the_same_clean_latent(t: Tensor, seed: int) -> None:
    x_t, v = latents(seed)
    of_eps, of_v = make("epsilon"), make("v_prediction")
    eps = of_v.alpha(t) * v + of_v.sigma(t) * x_t  # rotates (x_t, v) back to (x_0, eps)
    torch.testing.assert_close(of_eps.x0(eps, x_t, t), of_v.x0(v, x_t, t), rtol=3e-5, atol=3e-5)


@bounded
@given(t=timesteps, seed=st.integers(0, 99))
def test_the_weighted_error_of_v_is_the_error_of_eps(t: Tensor, seed: int) -> None:
    schedule = make("v_prediction")
    x_0, eps, wrong = latents(seed, count=3)
    x_t, v = schedule.add_noise(x_0, eps, t), schedule.velocity(x_0, eps, t)
    a, s = schedule.alpha(t), schedule.sigma(t)
    eps_error = (a * (v + wrong) + s * x_t) - (a * v + s * x_t)
    torch.testing.assert_close(schedule.eps_weight(t) * wrong**2, eps_error**2)


@pytest.mark.parametrize("t", [0, 20, 625, 979, 999])
def test_eps_weight_is_snr_over_snr_plus_one(t: int) -> None:
    snr = ABAR[t] / (1 - ABAR[t])
    at = torch.tensor([t])
    assert make("v_prediction").eps_weight(at).item() == pytest.approx(snr / (snr + 1), rel=1e-6)
    assert make("epsilon").eps_weight(at).tolist() == [[[[1.0]]]]


def test_nothing_is_clipped() -> None:
    schedule, t = make("epsilon"), torch.tensor([999])
    x_0 = schedule.x0(torch.zeros(1, 1, 1, 1), torch.full((1, 1, 1, 1), 50.0), t)
    assert x_0.item() == pytest.approx(50 / ABAR[999] ** 0.5, rel=1e-5)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_gradients_of_x0(prediction_type: str) -> None:
    schedule, t = make(prediction_type), torch.tensor([20, 625])
    prediction, x_t = latents(1, batch=2).requires_grad_()
    torch.autograd.gradcheck(lambda p, x: schedule.x0(p, x, t), (prediction, x_t))
