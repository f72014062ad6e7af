"""The random numbers of one phase of an iteration."""

import math
from enum import IntEnum
from typing import NamedTuple

import torch
from torch import Tensor

from sid_lsg.method.randomness import integers, normal, random_bits, uniform
from sid_lsg.method.schedule import Schedule


class Phase(IntEnum):
    """The two halves of an iteration."""

    FAKE_SCORE = 0
    GENERATOR = 1


REAL_IMAGES = 2
"""In addition to the phases: the draws of phase 1's real images (`adversarial`), without z."""

_STEPS = 3  # the draw of k
_USES = 4  # the above, per step of the fake score
_AT_ONCE = 2**23  # numbers that are drawn at a time


class Draws(NamedTuple):
    """The random numbers of B samples in one phase.

    Attributes:
        noises: Standard normal [B, ...], the generator's noises z, one for each step that is run.
        eps: [B, ...] standard normal, the noise of the diffusion.
        t: [B], the time of the diffusion.
        u: [B] uniform in [0, 1); the prompt is dropped where it is below the dropout probability.
    """

    noises: list[Tensor]
    eps: Tensor
    t: Tensor
    u: Tensor

    def select(self, index: Tensor | slice) -> "Draws":
        """Select some of the samples."""
        noises, *others = self
        return Draws([z[index] for z in noises], *(tensor[index] for tensor in others))


def draw(
    phase: int,
    iteration: int,
    positions: Tensor,
    *,
    schedule: Schedule,
    latent_shape: tuple[int, ...],
    num_steps: int,
    tmin: int,
    tmax: int,
    seed: int,
    repeat: int = 0,
) -> Draws:
    """Draw a phase's numbers as a pure function of (seed, iteration, position, stream).

    Args:
        phase: A `Phase`, or `REAL_IMAGES`; each has its own numbers.
        iteration: The training iteration.
        positions: [B] int64, the samples' positions in the global batch.
        schedule: Draws t.
        latent_shape: A latent's shape, (C, H, W) for an image.
        num_steps: The generator's network evaluations per image in this iteration.
        tmin: Smallest timestep.
        tmax: Largest timestep, plus one.
        seed: The seed of the run.
        repeat: Which of the fake score's steps of this iteration, from 0.
    """
    # One stream per use: three for eps, t and u, and one for each of the generator's steps.
    base, count = (int(phase) + _USES * repeat) << 16, math.prod(latent_shape)
    pairs = count + count % 2
    counts = {base: pairs, base + 1: 2, base + 2: 1}
    counts |= dict.fromkeys(range(base + 16, base + 16 + num_steps), pairs)

    def latent(bits: Tensor) -> Tensor:
        return normal(bits)[:, :count].reshape(-1, *latent_shape)

    def some(positions: Tensor) -> Draws:
        eps, t, u, *noises = random_bits(counts, positions, iteration, seed)
        times = schedule.draw_times(t, tmin, tmax)
        return Draws([latent(bits) for bits in noises], latent(eps), times, uniform(u[:, 0]))

    # Integers of 64 bits take several times the memory of the numbers that they become.
    size = max(_AT_ONCE // sum(counts.values()), 1)
    parts = [some(own) for own in torch.split(positions, size)]
    if len(parts) == 1:
        return parts[0]
    noises, eps, t, u = zip(*parts, strict=True)
    joined = [torch.cat(own) for own in zip(*noises, strict=True)]
    return Draws(joined, torch.cat(eps), torch.cat(t), torch.cat(u))


def draw_steps(iteration: int, num_steps: int, seed: int) -> int:
    """Draw k uniformly from 1..K, the generator's steps in an iteration (SiD-DiT).

    It depends on (seed, iteration) alone, so it is the same for all processes, both phases and all
    micro-batches. It is drawn on the CPU: no device is waited for.

    Args:
        iteration: The training iteration.
        num_steps: K.
        seed: The seed of the run.
    """
    (bits,) = random_bits({_STEPS << 16: 1}, torch.zeros(1, dtype=torch.int64), iteration, seed)
    return int(integers(bits, 1, num_steps + 1))
