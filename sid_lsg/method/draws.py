"""Everything random that one phase of one iteration needs."""

import math
from enum import IntEnum
from typing import NamedTuple

from torch import Tensor

from sid_lsg.method.randomness import normal, random_bits, uniform
from sid_lsg.method.schedule import Schedule


class Phase(IntEnum):
    """The two halves of an iteration."""

    FAKE_SCORE = 0
    GENERATOR = 1


REAL_IMAGES = 2
"""Beside the phases: the draws of phase 1's real images (`adversarial`), which need no z."""


class Draws(NamedTuple):
    """The random numbers of B samples in one phase.

    Attributes:
        noises: K standard normal [B, ...], the generator's noises z.
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
) -> Draws:
    """Draw a phase's numbers as a pure function of (seed, iteration, position, stream).

    Args:
        phase: Each `Phase` draws its own, and so do `REAL_IMAGES`.
        iteration: The training iteration.
        positions: [B] int64, the samples' positions in the global batch.
        schedule: Draws t.
        latent_shape: A latent's shape, (C, H, W) for an image.
        num_steps: K, the number of evaluations of the generator.
        tmin: Smallest timestep.
        tmax: Largest timestep, plus one.
        seed: The seed of the run.
    """
    # One stream per use: three for eps, t and u, and one for each of the generator's steps.
    base, count = int(phase) << 16, math.prod(latent_shape)
    pairs = count + count % 2
    counts = {base: pairs, base + 1: 2, base + 2: 1}
    counts |= dict.fromkeys(range(base + 16, base + 16 + num_steps), pairs)
    eps, t, u, *noises = random_bits(counts, positions, iteration, seed)

    def latent(bits: Tensor) -> Tensor:
        return normal(bits)[:, :count].reshape(-1, *latent_shape)

    return Draws(
        noises=[latent(bits) for bits in noises],
        eps=latent(eps),
        t=schedule.draw_times(t, tmin, tmax),
        u=uniform(u[:, 0]),
    )
