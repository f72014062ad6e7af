"""The random numbers of one phase of an iteration."""

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
"""In addition to the phases: the draws of phase 1's real images (`adversarial`), without z."""


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
        phase: A `Phase`, or `REAL_IMAGES`; each has its own numbers.
        iteration: The training iteration.
        positions: [B] int64, the samples' positions in the global batch.
        schedule: Draws t.
        latent_shape: A latent's shape, (C, H, W) for an image.
        num_steps: K, the generator's network evaluations (NFE) per image.
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
