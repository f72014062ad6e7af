"""Compare both phases, under discrete and flow schedules, with plain loops in float64."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sid_lsg.method.adversarial import RealSamples
from sid_lsg.method.conditioning import Conditioning
from sid_lsg.method.draws import Draws, Phase, draw
from sid_lsg.method.flow import FlowSchedule
from sid_lsg.method.guidance import Kappas
from sid_lsg.method.phases import Networks, PhaseInputs, Recipe, fake_score_phase, generator_phase
from sid_lsg.method.sampling import sample
from sid_lsg.method.schedule import DiscreteSchedule, Schedule

ABAR = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
KAPPAS = Kappas(1.5, 2.0, 3.0, 4.5)
NULL = {"states": torch.full((1, 1), 0.3, dtype=torch.float64)}
# latents of an image, packed latents, latents of a video
SHAPES = [(4, 3, 3), (6, 8), (2, 3, 2, 2)]
B = 4

Function = Callable[[Tensor, Tensor, Tensor], Tensor]


def discrete(prediction_type: Any) -> DiscreteSchedule:
    return DiscreteSchedule.from_alphas_cumprod(torch.from_numpy(ABAR), prediction_type)


SCHEDULES = {
    "epsilon": discrete("epsilon"),
    "v": discrete("v_prediction"),
    "flow": FlowSchedule(),
}
T_INIT = {"epsilon": 625, "v": 625, "flow": 999}


class Network(torch.nn.Module):
    """A network with two weights that records the times it receives."""

    def __init__(self, schedule: Schedule, *weights: float) -> None:
        super().__init__()
        self.weights = torch.nn.Parameter(torch.tensor(weights, dtype=torch.float64))
        self.schedule = schedule
        self.seen: list[Tensor] = []

    def forward(self, x_t: Tensor, t: Tensor, condition: Conditioning) -> Tensor:
        time = self.schedule.network_time(t)
        self.seen.append(time)
        shift = (condition["states"] * (1 + time[:, None] / 1000)).view(-1, *[1] * (x_t.dim() - 1))
        return torch.tanh(self.weights[0] * x_t + self.weights[1] * shift)


def made(name: str) -> tuple[Networks, list[Network]]:
    schedule = SCHEDULES[name]
    three = [Network(schedule, *w) for w in ((0.5, 0.2), (0.7, -0.4), (0.9, 0.6))]
    return Networks(*three, schedule, NULL), three


def inputs(name: str, shape: tuple[int, ...], num_steps: int = 2) -> PhaseInputs:
    draws = draw(
        Phase.GENERATOR, 3, torch.arange(B), schedule=SCHEDULES[name], latent_shape=shape,
        num_steps=num_steps, tmin=20, tmax=980, seed=0,
    )  # fmt: skip
    noises, eps, t, u = draws
    double = Draws([z.double() for z in noises], eps.double(), t, u)
    condition = {"states": torch.linspace(-1, 1, B, dtype=torch.float64)[:, None]}
    return PhaseInputs(condition, double, B)


def by_hand(name: str, networks: list[Network], given: PhaseInputs, t_init: int) -> dict[str, Any]:
    """Compute one sample at a time from method.md and flow.md, without the method's code."""
    flow, found = name == "flow", []
    generator, fake, teacher = networks

    def scales(t: Any) -> tuple[float, float]:
        if flow:
            return 1 - float(t), float(t)
        return float(np.float32(ABAR[int(t)] ** 0.5)), float(np.float32((1 - ABAR[int(t)]) ** 0.5))

    for i in range(B):
        condition = given.condition["states"][i : i + 1]

        def predict(network: Network, x: Tensor, t: Any, states: Tensor) -> Tensor:
            time = torch.as_tensor([t], dtype=torch.float32 if flow else torch.int64)
            return network(x[None], time, {"states": states})[0]

        def estimate(prediction: Tensor, x: Tensor, t: Any) -> Tensor:
            a, s = scales(t)
            if flow:
                return x - s * prediction
            return a * x - s * prediction if name == "v" else (x - s * prediction) / a

        x_g = torch.zeros_like(given.draws.eps[i])
        for k, z in enumerate(given.draws.noises):
            remaining = 1 - k / len(given.draws.noises)
            t = np.float32(t_init / 999 * remaining) if flow else int(t_init * remaining)
            a, s = scales(t)
            x = a * x_g + s * z[i]
            x_g = estimate(predict(generator, x, t, condition), x, t)
        t, eps = given.draws.t[i].item(), given.draws.eps[i]
        a, s = scales(t)
        x_t = a * x_g + s * eps
        (c_fake, u_fake), (c_real, u_real) = (
            [predict(network, x_t, t, states) for states in (condition, NULL["states"])]
            for network in (fake, teacher)
        )

        target = eps - x_g if flow else a * eps - s * x_g if name == "v" else eps
        detached = a * x_g.detach() + s * eps
        c, u = (predict(fake, detached, t, states) for states in (condition, NULL["states"]))
        wrong = u + KAPPAS.train_fake * (c - u) - target.detach()
        weight = a**2 if name == "v" else 1.0

        y_2, y_3 = (estimate(u_fake + k * (c_fake - u_fake), x_t, t) for k in KAPPAS[1:3])
        y_real = estimate(u_real + KAPPAS.eval_real * (c_real - u_real), x_t, t)
        w = (x_g - y_real).abs().mean().detach()
        product = (y_real - y_2) * ((y_real - x_g) - 1.2 * (y_real - y_3))
        found.append((weight * wrong.square().sum(), product.sum() / w))
    fake_losses, generator_losses = (torch.stack(losses) for losses in zip(*found, strict=True))
    return {"fake": fake_losses, "generator": generator_losses}


def gradient(loss: Tensor, network: Network) -> Tensor:
    return torch.autograd.grad(loss, network.weights, retain_graph=True)[0]


@pytest.mark.parametrize("shape", SHAPES, ids=["image", "packed", "video"])
@pytest.mark.parametrize("name", list(SCHEDULES))
@pytest.mark.parametrize("num_steps", [1, 2])
def test_both_phases_equal_a_loop_over_samples(
    name: str, shape: tuple[int, ...], num_steps: int
) -> None:
    networks, three = made(name)
    given = inputs(name, shape, num_steps)
    expected = by_hand(name, three, given, T_INIT[name])
    close: dict[str, Any] = {"rtol": 2e-5, "atol": 1e-5}  # schedules and times are float32

    fake = fake_score_phase(networks, given, Recipe(KAPPAS, T_INIT[name]))
    torch.testing.assert_close(fake.losses, expected["fake"], **close)
    torch.testing.assert_close(fake.loss, expected["fake"].mean(), **close)
    assert not fake.x_g.requires_grad
    ours, theirs = (gradient(x, three[1]) for x in (fake.loss, expected["fake"].mean()))
    torch.testing.assert_close(ours, theirs, **close)

    output = generator_phase(networks, given, Recipe(KAPPAS, T_INIT[name], alpha=1.2))
    torch.testing.assert_close(output.losses, expected["generator"], **close)
    ours, theirs = (gradient(x, three[0]) for x in (output.loss, expected["generator"].mean()))
    torch.testing.assert_close(ours, theirs, **close)


@pytest.mark.parametrize("name", list(SCHEDULES))
def test_distribution_matching_reaches_x_g_only(name: str) -> None:
    """DMD (arXiv 2311.18828, eq. 7): dL/dtheta = sum of (y_fake - y_real) / w * dx_g/dtheta."""
    networks, (generator, fake, teacher) = made(name)
    given, recipe = inputs(name, (4, 3, 3)), Recipe(KAPPAS, T_INIT[name], alpha=1.2)
    output = generator_phase(networks, given, recipe._replace(objective="dmd"))
    identity = generator_phase(networks, given, recipe)
    for field in ("x_g", "y_real", "y_fake_2", "weight"):
        torch.testing.assert_close(getattr(output, field), getattr(identity, field))
    w = (output.x_g - output.y_real).abs().mean(dim=(1, 2, 3)).view(-1, 1, 1, 1)
    direction = ((output.y_fake_2 - output.y_real) / w).detach()
    torch.testing.assert_close(output.losses, direction.square().sum(dim=(1, 2, 3)) / 2)
    expected = gradient((direction * output.x_g).sum() / B, generator)
    torch.testing.assert_close(gradient(output.loss, generator), expected)
    unused = torch.autograd.grad(
        output.loss, [fake.weights, teacher.weights], allow_unused=True, retain_graph=True
    )
    assert unused == (None, None)


@pytest.mark.parametrize("name", list(SCHEDULES))
def test_micro_batches_sum_to_the_batch_and_excluded_samples_keep_the_divisor(name: str) -> None:
    networks, (generator, fake, _) = made(name)
    given = inputs(name, (4, 3, 3))
    counted = torch.tensor([True, False, True, True])
    parts = [slice(0, 3), slice(3, 4)]
    for phase, network in (
        (lambda x: fake_score_phase(networks, x, Recipe(KAPPAS, 625)), fake),
        (lambda x: generator_phase(networks, x, Recipe(KAPPAS, 625)), generator),
    ):
        whole = phase(given)
        shares = [phase(given.select(part)) for part in parts]
        torch.testing.assert_close(sum(share.loss for share in shares), whole.loss)
        some = given._replace(counted=counted)
        without = sum(gradient(phase(some.select(part)).loss, network) for part in parts)
        alone = sum(gradient(phase(given.select(slice(i, i + 1))).loss, network) for i in (0, 2, 3))
        torch.testing.assert_close(without, alone)
        torch.testing.assert_close(phase(some).loss, whole.losses[counted].sum() / B)


def test_a_flow_generator_starts_from_noise_and_gets_times_in_thousandths() -> None:
    """t = 1, 0.75, 0.5, 0.25 in four steps; the network's time is 1000 t."""
    schedule = FlowSchedule()
    network = Network(schedule, 0.5, 0.0)
    noises = list(torch.randn(4, B, 6, 8, generator=torch.Generator().manual_seed(0)).double())
    inputs_: list[Tensor] = []

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        inputs_.append(x_t)
        return schedule.x0(network(x_t, t, {"states": torch.zeros(B, 1)}), x_t, t)

    sample(denoise, schedule, noises, 999)
    assert torch.equal(inputs_[0], noises[0])
    assert [float(time[0]) for time in network.seen] == [1000, 750, 500, 250]


def test_flow_times_follow_the_schedules_distribution() -> None:
    """The median is 2/3, and 5 to 95 % of the times lie in 0.13 to 0.97."""
    draws = draw(
        Phase.FAKE_SCORE, 0, torch.arange(50_000), schedule=FlowSchedule(), latent_shape=(1,),
        num_steps=1, tmin=20, tmax=980, seed=0,
    )  # fmt: skip
    found = draws.t.double().quantile(torch.tensor([0.05, 0.5, 0.95], dtype=torch.float64))
    expected = torch.sigmoid(np.log(2) + 1.6 * torch.tensor([-1.6449, 0, 1.6449])).double()
    torch.testing.assert_close(found, expected, rtol=0, atol=0.01)
    assert draws.t.dtype == torch.float32


class Adversary:
    """A discriminator whose features are the first two channels of the prediction."""

    fake_weight, generator_weight, limit = 30.0, 0.1, None

    def __init__(self, network: Network) -> None:
        self.network, self._latest = network, torch.empty(0)

    def __call__(self, x_t: Tensor, t: Tensor, condition: Conditioning) -> Tensor:
        self._latest = self.network(x_t, t, condition)
        return self._latest

    def encode(self, images: Tensor) -> Tensor:
        return images.double() / 255

    def features(self, x_t: Tensor, t: Tensor, condition: Conditioning) -> Tensor:
        return self(x_t, t, condition)[: len(x_t)]

    def latest(self, size: int) -> Tensor:
        return self._latest[:size]


@pytest.mark.parametrize("name", list(SCHEDULES))
def test_the_adversarial_term_is_added_to_each_samples_loss(name: str) -> None:
    networks, (_, fake, _) = made(name)
    given, adversary = inputs(name, (4, 3, 3)), Adversary(fake)
    real = RealSamples(torch.arange(B * 36).view(B, 4, 3, 3) % 255, given.condition, given.draws)
    given, plain = given._replace(real=real), networks
    networks = networks._replace(fake_score=adversary, adversary=adversary)

    def logits(x_0: Tensor) -> Tensor:
        x_t = networks.schedule.add_noise(x_0, given.draws.eps, given.draws.t)
        return fake(x_t, given.draws.t, given.condition).mean(1)

    first, alone = (fake_score_phase(n, given, Recipe(KAPPAS, 625)) for n in (networks, plain))
    d_real, d_fake = logits(adversary.encode(real.images)), logits(first.x_g)
    entropy = -(torch.sigmoid(d_real).log() + torch.sigmoid(-d_fake).log()).mean((1, 2)) / 2
    torch.testing.assert_close(first.losses, alone.losses + 30 * entropy)
    torch.testing.assert_close(first.numbers["loss_adversarial_fake"], entropy)
    torch.testing.assert_close(first.numbers["logit_real"], d_real.mean((1, 2)))
    torch.testing.assert_close(first.loss, first.losses.mean())

    second, alone = (generator_phase(n, given, Recipe(KAPPAS, 625)) for n in (networks, plain))
    entropy = -torch.sigmoid(logits(second.x_g)).log().mean((1, 2))
    torch.testing.assert_close(second.losses, alone.losses + 0.1 * 36 * entropy / second.weight)
    assert not alone.numbers
