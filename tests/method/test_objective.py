"""Compare the losses with hand-computed numbers, closed forms and identities."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sid_lsg.method.guidance import Prediction
from sid_lsg.method.objective import (
    WEIGHT_FLOOR,
    fake_score_loss,
    generator_loss,
    generator_weight,
    mean_over_batch,
)
from sid_lsg.method.shapes import per_sample

bounded = settings(max_examples=40, deadline=None, derandomize=True)
seeds = st.integers(0, 999)


def latents(count: int, seed: int = 0, batch: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, batch, 4, 3, 2, generator=generator, dtype=torch.float64)


def one(value: float) -> Tensor:
    return torch.full((1, 1, 1, 1), value, dtype=torch.float64)


# ---------------------------------------------------------------------- phase 1


def test_fake_score_loss_sums_each_sample() -> None:
    prediction, target = (
        torch.zeros(2, 1, 2, 2),
        torch.tensor([[[[1.0, 2], [3, 4]]], [[[5, 0]] * 2]]),
    )
    weight = torch.tensor([1.0, 0.5])
    assert fake_score_loss(prediction, target, weight).tolist() == [30.0, 25.0]


@bounded
@given(seed=seeds)
def test_fake_score_loss_and_gradient(seed: int) -> None:
    prediction, target = latents(2, seed)
    weight = torch.tensor([1.0, 0.25, 0.0], dtype=torch.float64)
    prediction.requires_grad_()
    loss = fake_score_loss(prediction, target, weight)
    difference = (prediction - target).detach()
    expected = weight * torch.linalg.vector_norm(difference, dim=(1, 2, 3)) ** 2
    torch.testing.assert_close(loss.detach(), expected)
    loss.sum().backward()
    torch.testing.assert_close(prediction.grad, 2 * per_sample(weight, difference) * difference)


# ---------------------------------------------------------------------- phase 2


def test_generator_weight_is_the_mean_distance_of_each_sample() -> None:
    x_g = torch.zeros(2, 1, 2, 2)
    y_real = torch.tensor([[[[1.0, -3], [0, 4]]], [[[-0.5, 0.5]] * 2]])
    assert generator_weight(x_g, y_real).tolist() == [2.0, 0.5]


def test_generator_weight_is_floored_and_keeps_a_nan() -> None:
    x_g = torch.tensor([1.0, 1.0, math.nan])[:, None, None, None]
    y_real = torch.tensor([1.0, 1.0 + 2e-5, 1.0])[:, None, None, None]
    at_floor, above, bad = generator_weight(x_g, y_real).tolist()
    assert at_floor == pytest.approx(1e-5)
    assert above == pytest.approx(2e-5, rel=0.01)
    assert math.isnan(bad)  # a finite weight would train on the sample instead of skipping it


def test_no_gradient_flows_through_the_weight() -> None:
    x_g, y_real = latents(2).requires_grad_()
    assert not generator_weight(x_g, y_real).requires_grad


def test_gradients_are_finite_where_generator_and_teacher_agree() -> None:
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
    [  # factor 1 * factor 2 / w, with y_real = 3, x_g = 1, y_fake = 0 + kappa (1 - 0); w = |1 - 3|
        (2, 2, 1.0, (3 - 2) * (2 - 1) / 2),
        (2, 5, 1.0, (3 - 2) * (5 - 1) / 2),
        (5, 2, 1.0, (3 - 5) * (2 - 1) / 2),
        (2, 5, 1.2, (3 - 2) * (2 + 1.2 * 2) / 2),
        (5, 2, 1.2, (3 - 5) * (2 - 1.2 * 1) / 2),
        (2, 2, 0.0, (3 - 2) * 2 / 2),
    ],
)
def test_generator_loss_equals_hand_computed_values(
    kappa_2: float, kappa_3: float, alpha: float, expected: float
) -> None:
    fake = Prediction(cond=one(1.0), uncond=one(0.0))
    x_g, y_real = one(1.0), one(3.0)
    weight = generator_weight(x_g, y_real)
    loss = generator_loss(x_g, y_real, fake.guided(kappa_2), fake.guided(kappa_3), weight, alpha)
    assert loss.tolist() == [pytest.approx(expected)]


@bounded
@given(seed=seeds)
def test_the_loss_at_alpha_one_has_a_closed_form(seed: int) -> None:
    x_g, y_real, y_fake = latents(3, seed)
    loss = generator_loss(x_g, y_real, y_fake, y_fake, generator_weight(x_g, y_real), 1.0)
    for i in range(3):
        w = (x_g[i] - y_real[i]).abs().sum() / x_g[i].numel()
        expected = torch.dot((y_real - y_fake)[i].flatten(), (y_fake - x_g)[i].flatten()) / w
        torch.testing.assert_close(loss[i], expected)


@bounded
@given(seed=seeds, alpha=st.floats(-2, 2))
def test_the_loss_is_a_difference_of_two_inner_products(seed: int, alpha: float) -> None:
    """sum (y_real - y_2)(y_real - x_g) - alpha sum (y_real - y_2)(y_real - y_3), polarized."""
    x_g, y_real, y_2, y_3 = latents(4, seed)
    weight = generator_weight(x_g, y_real)

    def square(x: Tensor) -> Tensor:
        return (x * x).sum(dim=(1, 2, 3))

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return (square(a + b) - square(a - b)) / 4

    first = y_real - y_2
    expected = dot(first, y_real - x_g) - alpha * dot(first, y_real - y_3)
    loss = generator_loss(x_g, y_real, y_2, y_3, weight, alpha) * weight
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("alpha", [1.0, 1.2])
def test_gradients_of_every_input_with_the_weight_constant(alpha: float) -> None:
    x_g, y_real, y_2, y_3 = (x.requires_grad_() for x in latents(4))
    weight = generator_weight(x_g, y_real)
    generator_loss(x_g, y_real, y_2, y_3, weight, alpha).sum().backward()
    w = per_sample(weight, x_g)
    with torch.no_grad():
        first, second = y_real - y_2, (y_real - x_g) - alpha * (y_real - y_3)
        expected = {
            "x_g": -first / w,
            "y_real": (second + (1 - alpha) * first) / w,
            "y_fake_2": -second / w,
            "y_fake_3": alpha * first / w,
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
    loss = generator_loss(x_g, y_real, y_fake, y_fake, torch.ones(1), alpha)
    fisher = float((y_real - y_fake).square().mean())
    assert fisher > 0.1
    assert float(loss.mean()) == pytest.approx(share * fisher, abs=4 * float(loss.std()) / 632)


# ---------------------------------------------------------------------- latents of any shape


@pytest.mark.parametrize("shape", [(3, 24), (3, 4, 6), (3, 2, 3, 2, 2)])
def test_packed_and_video_latents_have_the_losses_of_image_latents(shape: tuple[int, ...]) -> None:
    x_g, y_real, y_2, y_3 = latents(4)
    weight = generator_weight(x_g, y_real)
    other = [x.reshape(shape) for x in (x_g, y_real, y_2, y_3)]
    torch.testing.assert_close(generator_weight(*other[:2]), weight)
    loss = generator_loss(*other, weight, 1.2)
    torch.testing.assert_close(loss, generator_loss(x_g, y_real, y_2, y_3, weight, 1.2))
    losses = (fake_score_loss(a, b, weight) for a, b in ((x_g, y_2), (other[0], other[2])))
    torch.testing.assert_close(*losses)


# ---------------------------------------------------------------------- the mean over the batch


@bounded
@given(seed=seeds, size=st.integers(1, 7))
def test_the_losses_of_micro_batches_sum_to_the_mean(seed: int, size: int) -> None:
    losses = torch.randn(7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    shares = [mean_over_batch(part, 7) for part in losses.split(size)]
    torch.testing.assert_close(sum(shares), losses.mean())


def test_an_excluded_sample_contributes_no_loss_or_gradient() -> None:
    losses = torch.tensor([1.0, math.nan, 4.0], requires_grad=True)
    counted = torch.tensor([True, False, True])
    loss = mean_over_batch(losses, 3, counted)
    assert loss.item() == pytest.approx(5 / 3)
    loss.backward()
    assert losses.grad is not None
    assert losses.grad.tolist() == pytest.approx([1 / 3, 0, 1 / 3])
    assert mean_over_batch(losses, 3, counted & False).item() == 0
