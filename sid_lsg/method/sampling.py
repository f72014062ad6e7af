"""Sample the generator: one network evaluation, or K with fresh noise in between.

Training, image grids, metrics and the exported pipeline all sample through `sample`.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sid_lsg.method.conditioning import Conditioning, Predict
from sid_lsg.method.schedule import Schedule

Denoise = Callable[[Tensor, Tensor], Tensor]
"""A network with fixed prompts: (x_t [B, ...], t [B]) -> its estimate of x_0."""


def denoiser(predict: Predict, schedule: Schedule, condition: Conditioning) -> Denoise:
    """Return a function that estimates x_0 with a network and prompts, without guidance."""

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        return schedule.x0(predict(x_t, t, condition), x_t, t)

    return denoise


def sample(denoise: Denoise, schedule: Schedule, noises: Sequence[Tensor], t_init: int) -> Tensor:
    """Generate latents: noise at t_init, denoise, re-noise to the next time (METHOD.md, generator).

        x_g = 0;  for i = 0..K-1:  x_g = x_0-estimate of G at (alpha_{t_i} x_g + sigma_{t_i} z_i)

    The first input is sigma_{t_init} z, that is, noise added to a zero latent. Gradients flow
    through all K evaluations. No guidance, no clipping.

    Args:
        denoise: The generator with its prompts, from `denoiser`.
        schedule: The teacher's schedule.
        noises: K standard normal tensors [B, ...] float32, one per step.
        t_init: The first timestep.

    Returns:
        x_g, [B, ...] float32.
    """
    x_g = torch.zeros_like(noises[0])
    times = schedule.generator_times(t_init, len(noises))
    for z, time in zip(noises, times, strict=True):
        t = torch.full((len(z),), time, dtype=schedule.time_dtype, device=z.device)
        x_g = denoise(schedule.add_noise(x_g, z, t), t)
    return x_g


def seeded_noises(
    seeds: Sequence[int],
    shape: tuple[int, ...],
    num_steps: int = 1,
    device: torch.device | str = "cpu",
) -> list[Tensor]:
    """Draw each image's noise from its own seed, so that it depends on no other image.

    There is one `torch.Generator` per seed, on the CPU, as diffusers pipelines use them, so the
    first noise equals theirs for the same seed. Later steps' noises come from the same generator.

    Args:
        seeds: B seeds.
        shape: A latent's shape, (C, H, W) for an image.
        num_steps: K, the number of noises per image.
        device: Where to put the noises.

    Returns:
        K tensors [B, ...] float32.
    """
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    steps = range(num_steps)
    noises = [torch.stack([torch.randn(shape, generator=g) for g in generators]) for _ in steps]
    return [noise.to(device) for noise in noises]
