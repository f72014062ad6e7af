"""The losses against numbers worked out by hand, closed forms and the identities behind them."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sid_lsg.method.objective import (
    WEIGHT_FLOOR,
    Prediction,
    fake_score_loss,
    generator_loss,
    generator_weight,
)

bounded = settings(max_examples=40, deadline=None, derandomize=True)
seeds = st.integers(0, 999)


def latents(count: int, seed: int = 0, batch: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, batch, 4, 3, 2, generator=generator, dtype=torch.float64)


def one(value: float) -> Tensor:
    return torch.full((1, 1, 1, 1), value, dtype=torch.float64)


# ---------------------------------------------------------------------- guidance


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kappa_one_is_the_conditional_to_the_bit_without_the_null_prompt(dtype: Any) -> None:
    cond, uncond = (x.to(dtype) for x in latents(2))
    assert not torch.equal(uncond + 1.0 * (cond - uncond), cond)  # the formula would round
    assert torch.equal(Prediction(cond).guided(1), cond)
    assert torch.equal(Prediction(cond, uncond).guided(1.0), cond)


def test_guidance_extrapolates_from_the_null_prompt() -> None:
    prediction = Prediction(cond=one(5.0), uncond=one(3.0))
    for kappa, expected in ((0.0, 3.0), (0.5, 4.0), (1.0, 5.0), (1.5, 6.0), (4.5, 12.0)):
        assert prediction.guided(kappa).item() == expected


@bounded
@given(kappa=st.floats(-5, 10).filter(lambda k: k != 1), seed=seeds)
def test_gradients_reach_both_predictions(kappa: float, seed: int) -> None:
    cond, uncond = latents(2, seed)
    cond.requires_grad_()
    uncond.requires_grad_()
    Prediction(cond, uncond).guided(kappa).sum().backward()
    torch.testing.assert_close(cond.grad, torch.full_like(cond, kappa))
    torch.testing.assert_close(uncond.grad, torch.full_like(cond, 1 - kappa))


def test_guidance_without_the_null_prompts_prediction_is_a_programming_error() -> None:
    with pytest.raises(AssertionError, match="null prompt"):
        Prediction(one(1.0)).guided(1.5)


# ---------------------------------------------------------------------- phase 1


def test_fake_score_loss_sums_each_sample() -> None:
    prediction, target = (
        torch.zeros(2, 1, 2, 2),
        torch.tensor([[[[1.0, 2], [3, 4]]], [[[5, 0]] * 2]]),
    )
    weight = torch.tensor([1.0, 0.5])[:, None, None, None]
    assert fake_score_loss(prediction, target, weight).tolist() == [30.0, 25.0]


@bounded
@given(seed=seeds)
def test_fake_score_loss_and_gradient(seed: int) -> None:
    prediction, target = latents(2, seed)
    weight = torch.tensor([1.0, 0.25, 0.0], dtype=torch.float64)[:, None, None, None]
    prediction.requires_grad_()
    loss = fake_score_loss(prediction, target, weight)
    difference = (prediction - target).detach()
    expected = weight.flatten() * torch.linalg.vector_norm(difference, dim=(1, 2, 3)) ** 2
    torch.testing.assert_close(loss.detach(), expected)
    loss.sum().backward()
    torch.testing.assert_close(prediction.grad, 2 * weight * difference)


# ---------------------------------------------------------------------- phase 2


def test_generator_weight_is_the_mean_distance_of_each_sample() -> None:
    x_g = torch.zeros(2, 1, 2, 2)
    y_real = torch.tensor([[[[1.0, -3], [0, 4]]], [[[-0.5, 0.5]] * 2]])
    assert generator_weight(x_g, y_real).tolist() == [[[[2.0]]], [[[0.5]]]]


def test_generator_weight_is_floored_and_keeps_a_nan() -> None:
    x_g = torch.tensor([1.0, 1.0, math.nan])[:, None, None, None]
    y_real = torch.tensor([1.0, 1.0 + 2e-5, 1.0])[:, None, None, None]
    at_floor, above, bad = generator_weight(x_g, y_real).flatten().tolist()
    assert at_floor == pytest.approx(1e-5)
    assert above == pytest.approx(2e-5, rel=0.01)
    assert math.isnan(bad)  # or the sample would be trained on instead of skipped


def test_no_gradient_flows_through_the_weight() -> None:
    x_g, y_real = latents(2).requires_grad_()
    assert not generator_weight(x_g, y_real).requires_grad


def test_a_generator_that_meets_the_teacher_has_finite_gradients() -> None:
    x_g = torch.ones(1, 4, 8, 8, requires_grad=True)
    y_real = torch.ones(1, 4, 8, 8, requires_grad=True)
    y_fake = torch.full((1, 4, 8, 8), 1.5)
    loss = generator_loss(x_g, y_real, y_fake, y_fake, generator_weight(x_g, y_real), 1.0)
    loss.sum().backward()
    assert loss.item() == pytest.approx(-0.5 * 0.5 * 256 / WEIGHT_FLOOR)
    assert x_g.grad is not None
    assert y_real.grad is not None
    assert x_g.grad.isfinite().all()
    assert y_real.grad.isfinite().all()


@pytest.mark.parametrize(
    ("kappa_2", "kappa_3", "alpha", "expected"),
    [  # first factor * second / w, with y_real 3, x_g 1 and y_fake = 0 + kappa (1 - 0); w = |1 - 3|
        (2, 2, 1.0, (3 - 2) * (2 - 1) / 2),
        (2, 5, 1.0, (3 - 2) * (5 - 1) / 2),
        (5, 2, 1.0, (3 - 5) * (2 - 1) / 2),
        (2, 5, 1.2, (3 - 2) * (2 + 1.2 * 2) / 2),
        (5, 2, 1.2, (3 - 5) * (2 - 1.2 * 1) / 2),
        (2, 2, 0.0, (3 - 2) * 2 / 2),
    ],
)
def test_generator_loss_worked_out_by_hand(
    kappa_2: float, kappa_3: float, alpha: float, expected: float
) -> None:
    fake = Prediction(cond=one(1.0), uncond=one(0.0))
    x_g, y_real = one(1.0), one(3.0)
    weight = generator_weight(x_g, y_real)
    loss = generator_loss(x_g, y_real, fake.guided(kappa_2), fake.guided(kappa_3), weight, alpha)
    assert loss.tolist() == [pytest.approx(expected)]


@bounded
@given(seed=seeds)
def test_at_alpha_one_the_loss_has_a_closed_form(seed: int) -> None:
    x_g, y_real, y_fake = latents(3, seed)
    loss = generator_loss(x_g, y_real, y_fake, y_fake, generator_weight(x_g, y_real), 1.0)
    for i in range(3):
        w = (x_g[i] - y_real[i]).abs().sum() / x_g[i].numel()
        expected = torch.dot((y_real - y_fake)[i].flatten(), (y_fake - x_g)[i].flatten()) / w
        torch.testing.assert_close(loss[i], expected)


@bounded
@given(seed=seeds, alpha=st.floats(-2, 2))
def test_the_loss_is_the_distance_less_alpha_times_the_distance_of_the_scores(
    seed: int, alpha: float
) -> None:
    """sum (y_real - y_2)(y_real - x_g) - alpha sum (y_real - y_2)(y_real - y_3), polarized."""
    x_g, y_real, y_2, y_3 = latents(4, seed)
    weight = generator_weight(x_g, y_real)

    def square(x: Tensor) -> Tensor:
        return (x * x).sum(dim=(1, 2, 3))

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return (square(a + b) - square(a - b)) / 4

    first = y_real - y_2
    expected = dot(first, y_real - x_g) - alpha * dot(first, y_real - y_3)
    loss = generator_loss(x_g, y_real, y_2, y_3, weight, alpha) * weight.flatten()
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("alpha", [1.0, 1.2])
def test_gradients_into_every_input_with_the_weight_held_constant(alpha: float) -> None:
    x_g, y_real, y_2, y_3 = (x.requires_grad_() for x in latents(4))
    weight = generator_weight(x_g, y_real)
    generator_loss(x_g, y_real, y_2, y_3, weight, alpha).sum().backward()
    with torch.no_grad():
        first, second = y_real - y_2, (y_real - x_g) - alpha * (y_real - y_3)
        expected = {
            "x_g": -first / weight,
            "y_real": (second + (1 - alpha) * first) / weight,
            "y_fake_2": -second / weight,
            "y_fake_3": alpha * first / weight,
        }
    for x, (name, gradient) in zip((x_g, y_real, y_2, y_3), expected.items(), strict=True):
        torch.testing.assert_close(x.grad, gradient, msg=name)
    held = weight.detach()
    torch.autograd.gradcheck(
        lambda x, y, y_2, y_3: generator_loss(x, y, y_2, y_3, held, alpha),
        (x_g, y_real, y_2, y_3),
    )


@pytest.mark.parametrize(("alpha", "share"), [(0.0, 1.0), (0.5, 0.5), (1.0, 0.0)])
def test_the_score_identity(alpha: float, share: float) -> None:
    """With the exact fake score, the mean loss is (1 - alpha) E |y_real - y_fake|^2 (SiD, 2024).

    The generator's samples are N(1, 0.5^2), the data N(0, 1); both posteriors are known.
    """
    generator = torch.Generator().manual_seed(0)
    z, eps = torch.randn(2, 400_000, 1, 1, 1, generator=generator, dtype=torch.float64)
    x_g = 1.0 + 0.5 * z
    a, s = 0.8, 0.6
    x_t = a * x_g + s * eps

    def posterior_mean(mean: float, std: float) -> Tensor:
        gain = a * std**2 / (a**2 * std**2 + s**2)
        return mean + gain * (x_t - a * mean)

    y_real, y_fake = posterior_mean(0.0, 1.0), posterior_mean(1.0, 0.5)
    loss = generator_loss(x_g, y_real, y_fake, y_fake, torch.ones(1, 1, 1, 1), alpha)
    fisher = float((y_real - y_fake).square().mean())
    assert fisher > 0.1
    assert float(loss.mean()) == pytest.approx(share * fisher, abs=4 * float(loss.std()) / 632)
