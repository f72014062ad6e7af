"""Sample the generator: one network evaluation, or K with noise in between.

Training, image grids, metrics and the exported pipeline all sample through `sample`.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sid_lsg.method.choices import Noise, StepTraining
from sid_lsg.method.conditioning import Conditioning, Predict
from sid_lsg.method.schedule import Schedule

Denoise = Callable[[Tensor, Tensor], Tensor]
"""A network with fixed prompts: (x_t [B, ...], t [B]) -> its estimate of x_0."""


def denoiser(predict: Predict, schedule: Schedule, condition: Conditioning) -> Denoise:
    """Return a function that estimates x_0 with a network and prompts, without guidance."""

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        return schedule.x0(predict(x_t, t, condition), x_t, t)

    return denoise


def sample(
    denoise: Denoise,
    schedule: Schedule,
    noises: Sequence[Tensor],
    t_init: int,
    num_steps: int | None = None,
    noise: Noise = "fresh",
    step_training: StepTraining = "all",
) -> Tensor:
    """Generate latents: noise at t_init, denoise, re-noise to the next time (method.md, generator).

        x_g = 0;  for i = 0..k-1:  x_g = x_0-estimate of G at (alpha_{t_i} x_g + sigma_{t_i} z_i)

    The first input is sigma_{t_init} z, that is, noise added to a zero latent. No guidance, no
    clipping. Gradients flow through all evaluations (SiD-LSG), or through the last alone, whose
    input then carries no gradient (SiD-DiT).

    Args:
        denoise: The generator with its prompts, from `denoiser`.
        schedule: The teacher's schedule.
        noises: k standard normal tensors [B, ...] float32, one per step that is run.
        t_init: The first timestep.
        num_steps: K, the steps that the times t_i divide; by default k. A sample that stops after
            k < K steps is the K-step generator's estimate of x_0 at its k-th time.
        noise: fresh: z_i is the i-th of the noises. fixed: z_i is the first. ddim: z_i is what the
            estimate of x_0 leaves of the step's input, without gradient.
        step_training: The evaluations that record gradients.

    Returns:
        x_g, [B, ...] float32.
    """
    x_g, z = torch.zeros_like(noises[0]), noises[0]
    times = schedule.generator_times(t_init, num_steps or len(noises))[: len(noises)]
    for step, time in enumerate(times, start=1):
        t = torch.full((len(z),), time, dtype=schedule.time_dtype, device=z.device)
        trained = step_training == "all" or step == len(noises)
        with torch.set_grad_enabled(torch.is_grad_enabled() and trained):
            x_t = schedule.add_noise(x_g, z, t)
            x_g = denoise(x_t, t)
        if step == len(noises):
            break
        if noise == "fresh":
            z = noises[step]
        elif noise == "ddim":
            z = schedule.implied_noise(x_g, x_t, t).detach()
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
