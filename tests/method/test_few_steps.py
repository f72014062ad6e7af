"""Few-step sampling: the step that gradients flow through, the noise between steps, and k."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

from sid_lsg.method.draws import Phase, draw, draw_steps
from sid_lsg.method.flow import FlowSchedule
from sid_lsg.method.guidance import Kappas, passes, predict_guided
from sid_lsg.method.sampling import sample
from sid_lsg.method.schedule import DiscreteSchedule, Schedule
from sid_lsg.method.shapes import per_sample

ABAR = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000).double() ** 2, 0)
SCHEDULES: dict[str, tuple[Schedule, int]] = {
    "epsilon": (DiscreteSchedule.from_alphas_cumprod(ABAR, "epsilon"), 625),
    "v": (DiscreteSchedule.from_alphas_cumprod(ABAR, "v_prediction"), 625),
    "flow": (FlowSchedule(), 999),
}
B = 3


class Network(torch.nn.Module):
    """A network with one weight that records its inputs."""

    def __init__(self, schedule: Schedule) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(0.7, dtype=torch.float64))
        self.schedule = schedule
        self.seen: list[tuple[Tensor, Tensor, bool]] = []

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        self.seen.append((x_t, t, torch.is_grad_enabled()))
        time = per_sample(self.schedule.network_time(t).double() / 1000, x_t)
        return self.schedule.x0(torch.tanh(self.weight * x_t + time), x_t, t)


def noises(count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return list(torch.randn(count, B, 4, 2, 2, generator=generator, dtype=torch.float64))


def by_hand(
    schedule: Schedule, network: Network, z: list[Tensor], k: int, K: int, kind: str
) -> Any:
    """Sample with plain loops; return x_g and the input of the last step."""
    t_init = 999 if isinstance(schedule, FlowSchedule) else 625
    x_g, noise, x_t = torch.zeros_like(z[0]), z[0], z[0]
    for i, time in enumerate(schedule.generator_times(t_init, K)[:k]):
        t = torch.full((B,), time, dtype=schedule.time_dtype)
        a, s = (per_sample(of(t), x_g) for of in (schedule.alpha, schedule.sigma))
        if i and kind == "fresh":
            noise = z[i]
        if i and kind == "ddim":
            before = schedule.generator_times(t_init, K)[i - 1]
            u = torch.full((B,), before, dtype=schedule.time_dtype)
            b, r = (per_sample(of(u), x_g) for of in (schedule.alpha, schedule.sigma))
            noise = (x_t - b * x_g) / r
        x_t = (a * x_g + s * noise).detach()
        x_g = network(x_t, t)
    return x_g, x_t


@pytest.mark.parametrize("kind", ["fresh", "fixed", "ddim"])
@pytest.mark.parametrize(("k", "steps"), [(1, 1), (1, 4), (2, 4), (3, 3), (4, 4)])
@pytest.mark.parametrize("name", SCHEDULES)
def test_only_the_last_step_is_differentiated(name: str, k: int, steps: int, kind: Any) -> None:
    schedule, t_init = SCHEDULES[name]
    network, other = Network(schedule), Network(schedule)
    z = noises(k)
    x_g = sample(network, schedule, z, t_init, steps, kind, "last")
    expected, last = by_hand(schedule, other, z, k, steps, kind)
    torch.testing.assert_close(x_g, expected)
    assert [graph for *_, graph in network.seen] == [False] * (k - 1) + [True]
    x_t, _, _ = network.seen[-1]
    assert not x_t.requires_grad
    torch.testing.assert_close(x_t, last)
    x_g.sum().backward()
    (wanted,) = torch.autograd.grad(expected.sum(), [other.weight])
    torch.testing.assert_close(network.weight.grad, wanted)


@pytest.mark.parametrize("kind", ["fresh", "fixed", "ddim"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_samples_do_not_depend_on_the_steps_that_are_trained(name: str, kind: Any) -> None:
    schedule, t_init = SCHEDULES[name]
    z = noises(3)
    found = {
        trained: sample(Network(schedule), schedule, z, t_init, None, kind, trained)
        for trained in ("all", "last")
    }
    assert torch.equal(found["all"], found["last"])
    with torch.no_grad():
        assert not sample(Network(schedule), schedule, z, t_init, None, kind, "last").requires_grad


def test_gradients_flow_through_all_steps_by_default() -> None:
    schedule, t_init = SCHEDULES["flow"]
    network = Network(schedule)
    sample(network, schedule, noises(3), t_init).sum().backward()
    assert all(graph for *_, graph in network.seen)
    assert network.seen[-1][0].requires_grad


# ---------------------------------------------------------------------- k


@pytest.mark.slow
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_k_is_uniform_and_a_function_of_seed_and_iteration(steps: int) -> None:
    found = [draw_steps(i, steps, seed=0) for i in range(4000)]
    counts = Counter(found)
    assert set(counts) == set(range(1, steps + 1))
    assert all(abs(n - 4000 / steps) < 5 * (4000 / steps) ** 0.5 for n in counts.values())
    assert found[:200] == [draw_steps(i, steps, seed=0) for i in range(200)]
    if steps > 1:
        assert found[:200] != [draw_steps(i, steps, seed=1) for i in range(200)]


def test_the_first_k_noises_are_those_of_all_steps_and_repeats_differ() -> None:
    common: dict[str, Any] = {
        "schedule": FlowSchedule(), "latent_shape": (4, 2, 2), "tmin": 20, "tmax": 980, "seed": 0
    }  # fmt: skip
    positions = torch.arange(2)
    whole = draw(Phase.FAKE_SCORE, 3, positions, num_steps=4, **common)
    part = draw(Phase.FAKE_SCORE, 3, positions, num_steps=2, **common)
    assert all(map(torch.equal, whole.noises[:2], part.noises))
    assert torch.equal(whole.eps, part.eps)
    seen = [whole.eps]
    for phase in (*Phase, 2):
        for repeat in range(3):
            again = draw(phase, 3, positions, num_steps=1, repeat=repeat, **common)
            seen += [again.eps, again.noises[0]]
    flat = {tuple(eps.flatten().tolist()) for eps in seen}
    assert len(flat) == len(seen) - 1  # only phase 1's first draw is there twice


# ---------------------------------------------------------------------- kappa = 0


@pytest.mark.parametrize(
    ("kappas", "sizes"),
    [((0,), [2]), ((0, 0), [2]), ((1,), [2]), ((0, 1), [4]), ((-1,), [4]), ((0, 2), [4])],
)
def test_a_scale_of_zero_costs_one_pass_without_the_prompt(
    kappas: tuple[float, ...], sizes: list[int]
) -> None:
    x_t, t = torch.randn(2, 3), torch.tensor([0.2, 0.7])
    condition, null = {"c": torch.tensor([[1.0], [2.0]])}, {"c": torch.tensor([[5.0]])}
    seen: list[int] = []

    def predict(x: Tensor, time: Tensor, c: Any) -> Tensor:
        seen.append(len(x))
        return x + c["c"]

    found = predict_guided(predict, x_t, t, condition, null, kappas)
    assert seen == sizes
    assert passes(*kappas) == sizes[0] // 2
    for kappa, own in zip(kappas, found, strict=True):
        told, untold = x_t + condition["c"], x_t + 5
        torch.testing.assert_close(own, untold + kappa * (told - untold))


def test_evaluations_count_the_passes() -> None:
    assert Kappas(0, 0, 0, 1).evaluations == (1, 1, 1)
    assert Kappas(-0.5, -0.5, -0.5, 1).evaluations == (2, 2, 1)
    assert Kappas(0, 0, 1, 0).evaluations == (1, 2, 1)
