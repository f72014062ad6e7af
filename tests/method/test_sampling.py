"""Compare sampling with a plain float64 loop, and check the noise of each seed."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sid_lsg.method.sampling import sample, seeded_noises
from sid_lsg.method.schedule import DiscreteSchedule

ABAR = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
SHAPE = (2, 4, 3, 3)


@pytest.fixture
def schedule() -> DiscreteSchedule:
    return DiscreteSchedule.from_alphas_cumprod(torch.from_numpy(ABAR), "epsilon")


def noises(count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return list(torch.randn(count, *SHAPE, generator=generator, dtype=torch.float64))


def test_one_step_from_a_noise_prediction(schedule: DiscreteSchedule) -> None:
    """x_T = sqrt(1 - abar) z;  x_g = (x_T - sqrt(1 - abar) eps(x_T)) / sqrt(abar)."""
    (z,) = noises(1)
    x_g = sample(lambda x, t: schedule.x0(torch.tanh(x), x, t), schedule, [z], 625)
    x_T = np.sqrt(1 - ABAR[625]) * z.numpy()
    expected = (x_T - np.sqrt(1 - ABAR[625]) * np.tanh(x_T)) / np.sqrt(ABAR[625])
    np.testing.assert_allclose(x_g, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("num_steps", [1, 2, 4])
def test_k_steps_equal_a_loop_in_float64(schedule: DiscreteSchedule, num_steps: int) -> None:
    """The denoiser of Gaussian data N(0.3, 0.7^2): E[x_0 | x_t]."""
    seen: list[int] = []

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        assert t.dtype == torch.int64
        assert t.shape == (2,)
        seen.append(int(t[0]))
        abar = torch.from_numpy(ABAR)[t][:, None, None, None]
        gain = abar.sqrt() * 0.49 / (abar * 0.49 + 1 - abar)
        return 0.3 + gain * (x_t - abar.sqrt() * 0.3)

    zs = noises(num_steps)
    x_g = sample(denoise, schedule, zs, 625)
    x: float | np.ndarray = 0.0
    for i, z in enumerate(zs):
        abar = ABAR[int(625 * (1 - i / num_steps))]
        x_t = np.sqrt(abar) * x + np.sqrt(1 - abar) * z.numpy()
        # The precisions of two Gaussians add up: the prior's and that of x_t / sqrt(abar).
        prior, seen_precision = 1 / 0.7**2, abar / (1 - abar)
        x = (prior * 0.3 + seen_precision * x_t / np.sqrt(abar)) / (prior + seen_precision)
    np.testing.assert_allclose(x_g, x, rtol=1e-5, atol=1e-6)
    assert seen == schedule.generator_times(625, num_steps)


def test_the_gradient_flows_through_all_steps(schedule: DiscreteSchedule) -> None:
    """With the denoiser theta x_t, three steps are a cubic in theta."""
    z = noises(3)
    theta = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    x_g = sample(lambda x_t, t: theta * x_t, schedule, z, 625)
    (gradient,) = torch.autograd.grad(x_g.sum(), theta)
    (s0, s1, s2), (_, a1, a2) = (np.sqrt(x[[625, 416, 208]]) for x in (1 - ABAR, ABAR))
    sums = [float(x.sum()) for x in z]
    cubic, square, linear = a2 * a1 * s0 * sums[0], a2 * s1 * sums[1], s2 * sums[2]
    assert float(x_g.sum().detach()) == pytest.approx(
        0.7**3 * cubic + 0.7**2 * square + 0.7 * linear, rel=1e-5
    )
    assert float(gradient) == pytest.approx(3 * 0.49 * cubic + 2 * 0.7 * square + linear, rel=1e-5)


def test_gradients_of_a_nonlinear_generator(schedule: DiscreteSchedule) -> None:
    weight = torch.tensor([0.4, -0.9], dtype=torch.float64, requires_grad=True)

    def generate(w: Tensor) -> Tensor:
        return sample(lambda x, t: torch.tanh(w[0] * x + w[1]), schedule, noises(3), 625)

    torch.autograd.gradcheck(generate, (weight,))


def test_samples_do_not_mix(schedule: DiscreteSchedule) -> None:
    zs = [x.float() for x in noises(2)]

    def generate(noises: list[Tensor]) -> Tensor:
        return sample(lambda x, t: 3 * x.abs(), schedule, noises, 625)

    both = generate(zs)
    assert both.dtype == torch.float32
    assert torch.equal(both, torch.cat([generate([z[i : i + 1] for z in zs]) for i in (0, 1)]))


def test_seeded_noise_equals_that_of_diffusers() -> None:
    from diffusers.utils.torch_utils import randn_tensor

    seeds, shape = [0, 7, 2**40, 7], (4, 8, 8)
    (noise,) = seeded_noises(seeds, shape)
    assert noise.dtype == torch.float32
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    assert torch.equal(noise, randn_tensor((4, *shape), generator=generators))
    assert torch.equal(noise[1], torch.randn(shape, generator=torch.Generator().manual_seed(7)))
    assert torch.equal(noise[1], noise[3])


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    seeds=st.lists(st.integers(0, 2**63), min_size=1, max_size=5),
    num_steps=st.integers(1, 4),
)
def test_the_noise_of_a_seed_is_independent_of_other_seeds(
    seeds: list[int], num_steps: int
) -> None:
    together = seeded_noises(seeds, (2, 4, 4), num_steps)
    assert len(together) == num_steps
    for i, seed in enumerate(seeds):
        generator = torch.Generator().manual_seed(seed)
        for noise in together:
            assert torch.equal(noise[i], torch.randn(2, 4, 4, generator=generator))


def test_seeded_noises_do_not_change_the_global_random_state() -> None:
    before = torch.get_rng_state()
    seeded_noises([1, 2], (4, 8, 8), num_steps=3)
    assert torch.equal(torch.get_rng_state(), before)
