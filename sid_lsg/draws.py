"""Everything random that one phase of one iteration needs."""

from enum import IntEnum
from typing import NamedTuple

from torch import Tensor

from sid_lsg.randomness import integers, normal, uniform


class Phase(IntEnum):
    """The two halves of an iteration."""

    FAKE_SCORE = 0
    GENERATOR = 1


class Draws(NamedTuple):
    """The random numbers of B samples in one phase.

    Attributes:
        noises: K standard normal [B, C, H, W], the generator's noises z.
        eps: [B, C, H, W] standard normal, the noise of the diffusion.
        t: [B] int64, uniform over tmin..tmax-1.
        u: [B] uniform in [0, 1); the prompt is dropped where it is below the dropout probability.
    """

    noises: list[Tensor]
    eps: Tensor
    t: Tensor
    u: Tensor


def draw(
    phase: Phase,
    iteration: int,
    positions: Tensor,
    *,
    latent_shape: tuple[int, int, int],
    num_steps: int,
    tmin: int,
    tmax: int,
    seed: int,
) -> Draws:
    """Draw a phase's numbers as a pure function of (seed, iteration, position, stream).

    Args:
        phase: Each phase draws its own.
        iteration: The training iteration.
        positions: [B] int64, the samples' positions in the global batch.
        latent_shape: (C, H, W).
        num_steps: K, the generator's number of evaluations.
        tmin: Smallest timestep.
        tmax: Largest timestep, plus one.
        seed: The seed of the run.
    """
    # One stream per use: three for eps, t and u, and one for each of the generator's steps.
    base = int(phase) << 16
    return Draws(
        noises=[
            normal(latent_shape, positions, iteration, base + 16 + step, seed)
            for step in range(num_steps)
        ],
        eps=normal(latent_shape, positions, iteration, base, seed),
        t=integers(tmin, tmax, positions, iteration, base + 1, seed),
        u=uniform(positions, iteration, base + 2, seed),
    )
