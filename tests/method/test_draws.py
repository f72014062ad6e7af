"""The draws of a phase depend only on seed, phase, iteration and position."""

import math
from itertools import combinations
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sid_lsg.method.draws import Draws, Phase, draw
from sid_lsg.method.schedule import DiscreteSchedule

SCHEDULE = DiscreteSchedule(torch.ones(1000), torch.ones(1000))


def drawn(phase: Phase, iteration: int, positions: Tensor, **options: Any) -> Draws:
    defaults: dict[str, Any] = {
        "schedule": SCHEDULE,
        "latent_shape": (4, 4, 4),
        "num_steps": 2,
        "tmin": 20,
        "tmax": 980,
        "seed": 0,
    }
    return draw(phase, iteration, positions, **(defaults | options))


def flat(draws: Draws) -> list[Tensor]:
    return [*draws.noises, draws.eps, draws.t, draws.u]


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    phase=st.sampled_from(Phase),
    iteration=st.integers(0, 2**32 - 1),
    first=st.integers(0, 2**31),
    split=st.integers(1, 7),
    seed=st.integers(0, 2**64 - 1),
)
def test_a_batch_can_be_drawn_in_parts(
    phase: Phase, iteration: int, first: int, split: int, seed: int
) -> None:
    positions = first + torch.arange(8)
    whole, *parts = (
        flat(drawn(phase, iteration, part, seed=seed))
        for part in (positions, positions[:split], positions[split:])
    )
    for one, left, right in zip(whole, *parts, strict=True):
        assert torch.equal(one, torch.cat([left, right]))


@pytest.mark.parametrize(("at_once", "num_steps"), [(1, 2), (700, 2), (700, 0)])
def test_memory_is_bounded_by_drawing_some_samples_at_a_time(
    monkeypatch: pytest.MonkeyPatch, at_once: int, num_steps: int
) -> None:
    whole = flat(drawn(Phase.GENERATOR, 3, torch.arange(7), num_steps=num_steps))
    monkeypatch.setattr("sid_lsg.method.draws._AT_ONCE", at_once)
    parts = flat(drawn(Phase.GENERATOR, 3, torch.arange(7), num_steps=num_steps))
    assert all(map(torch.equal, parts, whole))


def test_shapes_and_types() -> None:
    draws = drawn(Phase.GENERATOR, 3, torch.arange(5), latent_shape=(4, 6, 2), num_steps=3)
    assert [noise.shape for noise in (*draws.noises, draws.eps)] == [(5, 4, 6, 2)] * 4
    assert draws.t.shape == draws.u.shape == (5,)
    assert [x.dtype for x in flat(draws)] == [torch.float32] * 4 + [torch.int64, torch.float32]


def test_a_latent_may_have_an_odd_number_of_entries() -> None:
    odd = drawn(Phase.GENERATOR, 3, torch.arange(5), latent_shape=(3, 3, 1))
    even = drawn(Phase.GENERATOR, 3, torch.arange(5), latent_shape=(10, 1, 1))
    for a, b in zip((*odd.noises, odd.eps), (*even.noises, even.eps), strict=True):
        assert torch.equal(a.flatten(1), b.flatten(1)[:, :9])


def test_num_steps_and_the_range_of_t_change_no_other_noise() -> None:
    one = drawn(Phase.FAKE_SCORE, 5, torch.arange(6), num_steps=1)
    four = drawn(Phase.FAKE_SCORE, 5, torch.arange(6), num_steps=4, tmin=0, tmax=7)
    assert torch.equal(one.noises[0], four.noises[0])
    assert torch.equal(one.eps, four.eps)
    assert torch.equal(one.u, four.u)
    assert int(four.t.max()) < 7


@pytest.mark.parametrize(
    "other",
    [
        drawn(Phase.GENERATOR, 5, torch.arange(8)),
        drawn(Phase.FAKE_SCORE, 6, torch.arange(8)),
        drawn(Phase.FAKE_SCORE, 5, torch.arange(8, 16)),
        drawn(Phase.FAKE_SCORE, 5, torch.arange(8), seed=1),
    ],
    ids=["phase", "iteration", "position", "seed"],
)
def test_every_draw_changes_with(other: Draws) -> None:
    for a, b in zip(flat(drawn(Phase.FAKE_SCORE, 5, torch.arange(8))), flat(other), strict=True):
        assert int((a == b).sum()) <= 0.05 * a.numel()


def test_all_noises_of_an_iteration_are_independent() -> None:
    positions = torch.arange(4000)
    both = [drawn(phase, 1, positions, num_steps=3) for phase in Phase]
    noises = [x.double().flatten() for d in both for x in (*d.noises, d.eps)]
    bound = 4.5 / math.sqrt(len(noises[0]))
    for a, b in combinations(noises, 2):
        assert abs(float((a * b).mean())) < bound
    scalars = [x.double() for d in both for x in (d.t, d.u)]
    correlations = torch.corrcoef(torch.stack(scalars)) - torch.eye(4)
    assert float(correlations.abs().max()) < 4 / math.sqrt(len(positions))


def test_t_covers_tmin_to_tmax_and_u_the_unit_interval() -> None:
    draws = drawn(Phase.GENERATOR, 0, torch.arange(50_000), latent_shape=(1, 1, 1))
    assert len(draws.t.unique()) == 960
    assert (int(draws.t.min()), int(draws.t.max())) == (20, 979)
    assert 0 <= float(draws.u.min()) < float(draws.u.max()) < 1
    # The share of dropped prompts at the method's probability of 0.1.
    assert abs(float((draws.u < 0.1).double().mean()) - 0.1) < 4 * math.sqrt(0.09 / 50_000)


def test_drawing_does_not_change_the_global_random_state() -> None:
    before = torch.get_rng_state()
    drawn(Phase.FAKE_SCORE, 0, torch.arange(4))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.gpu
def test_gpu_draws_equal_cpu_draws() -> None:
    positions = torch.arange(64)
    pairs = zip(
        flat(drawn(Phase.GENERATOR, 7, positions.cuda())),
        flat(drawn(Phase.GENERATOR, 7, positions)),
        strict=True,
    )
    for on_gpu, on_cpu in pairs:
        assert on_gpu.is_cuda
        torch.testing.assert_close(on_gpu.cpu(), on_cpu, rtol=1e-6, atol=1e-7)
