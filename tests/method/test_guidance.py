"""Classifier-free guidance, and when it needs a second prediction."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sid_lsg.method.conditioning import Conditioning
from sid_lsg.method.guidance import Kappas, Prediction, predict_guided, sampling_evaluations

bounded = settings(max_examples=40, deadline=None, derandomize=True)
seeds = st.integers(0, 999)


def latents(count: int, seed: int = 0, batch: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, batch, 4, 3, 2, generator=generator, dtype=torch.float64)


def one(value: float) -> Tensor:
    return torch.full((1, 1, 1, 1), value, dtype=torch.float64)


# ---------------------------------------------------------------------- the formula


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kappa_one_returns_the_conditional_prediction_bitwise(dtype: Any) -> None:
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


def test_guidance_without_the_null_prompts_prediction_is_an_assertion_error() -> None:
    with pytest.raises(AssertionError, match="null prompt"):
        Prediction(one(1.0)).guided(1.5)


# ---------------------------------------------------------------------- evaluations


class Network:
    """Stand in for a network and record the batch sizes."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def __call__(self, x_t: Tensor, t: Tensor, condition: Conditioning) -> Tensor:
        self.sizes.append(len(x_t))
        shift = condition["states"] + t[:, None]
        return torch.tanh(x_t.flatten(1) * shift).view_as(x_t)


@pytest.fixture
def inputs() -> tuple[Tensor, Tensor, Conditioning, Conditioning]:
    (x_t,) = latents(1)
    condition, null = {"states": x_t.flatten(1)[:, :1]}, {"states": one(0.5).view(1, 1)}
    return x_t, torch.tensor([0.1, 0.5, 0.9]), condition, null


@pytest.mark.parametrize("kappas", [[1], [1.0, 1]])
def test_without_guidance_there_is_one_pass_without_null_prompt(
    inputs: Any, kappas: list[float]
) -> None:
    network, (x_t, t, condition, _) = Network(), inputs
    predictions = predict_guided(network, x_t, t, condition, None, kappas)
    assert network.sizes == [3]
    assert len(predictions) == len(kappas)
    assert all(torch.equal(p, network(x_t, t, condition)) for p in predictions)


@pytest.mark.parametrize("kappas", [[3], [1, 2.5], [0.5, 0], [4.5, 4.5]])
def test_guidance_evaluates_one_doubled_batch(inputs: Any, kappas: list[float]) -> None:
    network, (x_t, t, condition, null) = Network(), inputs
    predictions = predict_guided(network, x_t, t, condition, null, kappas)
    assert network.sizes == [6]
    c, u = (
        network(x_t, t, given) for given in (condition, {"states": null["states"].expand(3, 1)})
    )
    for kappa, prediction in zip(kappas, predictions, strict=True):
        torch.testing.assert_close(prediction, u + kappa * (c - u))


def test_guidance_of_a_network_needs_the_null_prompt(inputs: Any) -> None:
    x_t, t, condition, _ = inputs
    with pytest.raises(AssertionError, match="null prompt"):
        predict_guided(Network(), x_t, t, condition, None, [1, 2])


@pytest.mark.parametrize(
    ("kappas", "evaluations", "drops"),
    [
        ((1, 1, 1, 1), (1, 1, 1), False),
        ((1, 1, 1, 4.5), (1, 1, 2), False),
        ((0.5, 0.5, 0.5, 1), (2, 2, 1), True),
        ((2, 2, 2, 2), (2, 2, 2), True),
        ((1, 1, 1.5, 1), (1, 2, 1), False),
        ((1, 1.5, 1, 1), (1, 2, 1), True),
        ((1.5, 1, 1, 1), (2, 1, 1), True),
    ],
)
def test_kappas_decide_evaluations_and_prompt_dropout(
    kappas: tuple[float, ...], evaluations: tuple[int, ...], drops: bool
) -> None:
    scales = Kappas(*kappas)
    assert scales.evaluations == evaluations
    assert scales.drops_prompts == drops
    assert scales.guided == (max(evaluations) > 1)


@pytest.mark.parametrize(("scale", "sampled"), [(4.5, 4.5), (1, 1), (0.5, 1), (-2, 1)])
def test_the_teacher_is_sampled_at_kappa_4_or_unguided(scale: float, sampled: float) -> None:
    sampling = Kappas(1, 1, 1, scale).sampling
    assert sampling == sampled
    assert sampling_evaluations(25, sampling) == (50 if sampled > 1 else 25)
