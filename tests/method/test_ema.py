"""The EMA's decay, and the EMA itself."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sid_lsg.method.ema import average, ema_beta


@pytest.mark.parametrize(
    ("batch_size", "images_seen", "expected"),
    [
        (512, 0, 0.0),  # the EMA starts as a copy
        (1, 0, 0.0),
        (512, 512, 0.5 ** (1 / 0.05)),  # half-life 25.6 images: 20 half-lives
        (512, 10_240, 0.5),  # half-life 512
        (500, 100_000, 0.5**0.1),  # half-life 5000
        (512, 999_999, 0.5 ** (512 / 49_999.95)),  # the ramp-up ends at a million
        (512, 1_000_000, 0.5 ** (512 / 50_000)),
        (512, 30_000_000, 0.5 ** (512 / 50_000)),
    ],
)
def test_ema_beta_in_the_papers_runs(batch_size: int, images_seen: int, expected: float) -> None:
    assert ema_beta(batch_size, images_seen, 50_000, 0.05) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("batch_size", [1, 50, 500])
def test_one_half_life_leaves_half_for_any_batch(batch_size: int) -> None:
    left = 1.0
    for iteration in range(50_000 // batch_size):
        left *= ema_beta(batch_size, 10**7 + iteration * batch_size, 50_000, 0.05)
    assert left == pytest.approx(0.5, rel=1e-9)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(seen=st.integers(0, 10**8), more=st.integers(0, 10**7), batch=st.integers(1, 4096))
def test_ema_beta_rises_from_zero_to_its_limit(seen: int, more: int, batch: int) -> None:
    early, late = (ema_beta(batch, images, 50_000, 0.05) for images in (seen, seen + more))
    assert 0 <= early <= late <= 0.5 ** (batch / 50_000)


@pytest.mark.parametrize(("halflife", "ratio"), [(0.0, 0.05), (50_000.0, 0.0)])
def test_no_half_life_means_no_ema(halflife: float, ratio: float) -> None:
    assert ema_beta(512, 10**7, halflife, ratio) == 0


def networks() -> tuple[nn.Module, nn.Module]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pair = [nn.Sequential(nn.Conv2d(2, 3, 3), nn.Linear(4, 5)).double() for _ in range(2)]
    return pair[0], pair[1]


@pytest.mark.parametrize("beta", [0.0, 0.25, 0.9, 1.0])
def test_the_ema_is_updated_in_place(beta: float) -> None:
    ema, network = networks()
    old, new = (copy.deepcopy(x.state_dict()) for x in (ema, network))
    places = [p.data_ptr() for p in ema.parameters()]
    average([*ema.parameters()], [*network.parameters()], beta)
    assert [p.data_ptr() for p in ema.parameters()] == places
    for name, value in ema.state_dict().items():
        torch.testing.assert_close(value, beta * old[name] + (1 - beta) * new[name])
        assert torch.equal(network.state_dict()[name], new[name])


def test_the_ema_is_a_bitwise_copy_at_beta_zero() -> None:
    ema, network = (x.float() for x in networks())
    average([*ema.parameters()], [*network.parameters()], 0.0)
    for a, b in zip(ema.parameters(), network.parameters(), strict=True):
        assert torch.equal(a, b)


def test_no_gradients_are_recorded() -> None:
    ema, network = networks()
    average([*ema.parameters()], [*network.parameters()], 0.5)
    assert all(p.is_leaf and p.requires_grad and p.grad is None for p in ema.parameters())
