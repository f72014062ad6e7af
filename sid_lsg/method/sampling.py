"""Sampling the generator: one evaluation, or K with fresh noise between them.

Training, image grids, metrics and the exported pipeline all sample through `sample`.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sid_lsg.method.schedule import NoiseSchedule

Denoise = Callable[[Tensor, Tensor], Tensor]
"""A network with its prompts: (x_t [B, C, H, W], t [B] int64) -> its estimate of x_0."""


def sampling_timesteps(t_init: int, num_steps: int) -> list[int]:
    """Return the timesteps of a K-step generator: t_i = trunc(t_init (1 - i / K)), i = 0..K-1.

    625 in one step; 625, 312 in two; 625, 468, 312, 156 in four.
    """
    return [t_init * (num_steps - i) // num_steps for i in range(num_steps)]


def sample(
    denoise: Denoise, schedule: NoiseSchedule, noises: Sequence[Tensor], t_init: int
) -> Tensor:
    """Generate latents: start from noise at t_init, denoise, re-noise to the next timestep, ...

        x_g = 0;  for i = 0..K-1:  x_g = x_0-estimate of G at (alpha_{t_i} x_g + sigma_{t_i} z_i)

    The first input is sigma_{t_init} z, that is, noise added to a zero latent. Gradients run
    through all K evaluations. No guidance, no clipping.

    Args:
        denoise: The generator under its prompts.
        schedule: The teacher's schedule.
        noises: K standard normal tensors [B, C, H, W] float32, one per step.
        t_init: The first timestep.

    Returns:
        x_g, [B, C, H, W] float32.
    """
    x_g = torch.zeros_like(noises[0])
    for z, timestep in zip(noises, sampling_timesteps(t_init, len(noises)), strict=True):
        t = torch.full((len(z),), timestep, dtype=torch.int64, device=z.device)
        x_g = denoise(schedule.add_noise(x_g, z, t), t)
    return x_g


def seeded_noises(
    seeds: Sequence[int],
    shape: tuple[int, ...],
    num_steps: int = 1,
    device: torch.device | str = "cpu",
) -> list[Tensor]:
    """Draw each image's noise from its own seed, so that it depends on no other image.

    One `torch.Generator` per seed, on the CPU, as diffusers pipelines take them: the first noise is
    theirs for the same seed. Later steps' noises follow from the same generator.

    Args:
        seeds: B seeds.
        shape: (C, H, W) of a latent.
        num_steps: K, how many noises each image needs.
        device: Where the noises are wanted.

    Returns:
        K tensors [B, C, H, W] float32.
    """
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    steps = range(num_steps)
    noises = [torch.stack([torch.randn(shape, generator=g) for g in generators]) for _ in steps]
    return [noise.to(device) for noise in noises]
