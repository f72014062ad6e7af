"""The weightings of the generator's loss against their formulas in numpy, for both schedules."""

import numpy as np
import pytest
import torch
from torch import Tensor

from sid_lsg.method.choices import WEIGHTINGS
from sid_lsg.method.flow import FlowSchedule
from sid_lsg.method.objective import WEIGHT_FLOOR, generator_loss, generator_weight
from sid_lsg.method.schedule import DiscreteSchedule, Schedule
from sid_lsg.method.weighting import loss_divisor

ABAR = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2, 0)
SCHEDULES: dict[str, tuple[Schedule, Tensor]] = {
    "flow": (FlowSchedule(), torch.tensor([1e-6, 0.1, 0.5, 0.9, 1.0])),
    "diffusion": (
        DiscreteSchedule.from_alphas_cumprod(ABAR, "epsilon"),
        torch.tensor([0, 20, 500, 979, 999]),
    ),
}


def factors(alpha: np.ndarray, sigma: np.ndarray) -> dict[str, np.ndarray]:
    """Return METHOD-FLOW's table (section 4), with sigma / alpha for t / (1 - t)."""
    with np.errstate(divide="ignore"):
        ratio = sigma / alpha
    return {
        "1_minus_sigma": 1 - sigma,
        "1_minus_sigma_squared": (1 - sigma) ** 2,
        "1_over_sigma": 1 / np.maximum(sigma, 1e-5),
        "1_over_sigma2": 1 / np.maximum(sigma**2, 1e-5),
        "snr_sqrt": 1 / np.maximum(ratio, 1e-5),
        "snr": 1 / np.maximum(ratio**2, 1e-5),
    }


@pytest.mark.parametrize("name", WEIGHTINGS)
@pytest.mark.parametrize("kind", SCHEDULES)
def test_a_weighting_follows_its_formula_and_carries_no_gradient(kind: str, name: str) -> None:
    schedule, t = SCHEDULES[kind]
    generator = torch.Generator().manual_seed(0)
    x_g, y_real = torch.randn(2, 5, 4, 3, 2, generator=generator)
    x_g.requires_grad_()
    found = loss_divisor(name, schedule, t, x_g, y_real)  # type: ignore[arg-type]
    assert found.shape == (5,)
    assert not found.requires_grad
    if name.startswith("sid"):
        assert torch.equal(found, generator_weight(x_g, y_real))
        return
    alpha, sigma = (of(t).double().numpy() for of in (schedule.alpha, schedule.sigma))
    expected = factors(alpha, sigma)[name]
    np.testing.assert_allclose(1 / found, expected, rtol=3e-5, atol=1e-7)


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_the_loss_stays_finite_at_the_ends(name: str) -> None:
    """Where 1 - t is 0, the loss and its gradient are 0, not NaN."""
    schedule, t = FlowSchedule(), torch.tensor([0.0, 1.0])
    x_g = torch.ones(2, 4, 2, 2, requires_grad=True)
    y_real, y_fake = torch.zeros(2, 4, 2, 2), torch.full((2, 4, 2, 2), 2.0)
    weight = loss_divisor(name, schedule, t, x_g, y_real)  # type: ignore[arg-type]
    loss = generator_loss(x_g, y_real, y_fake, y_fake, weight, 1.0)
    loss.sum().backward()
    assert loss.isfinite().all()
    assert x_g.grad is not None
    assert x_g.grad.isfinite().all()
    assert (weight >= WEIGHT_FLOOR * 0.99).all()
    if "minus" in name:
        assert loss[1] == 0
