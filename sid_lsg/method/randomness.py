"""Counter-based random numbers: every draw is a pure function of where it is used.

A draw depends only on (seed, stream, iteration, global sample position, index), not on the
micro-batch size, the number of ranks, other draws or a restart. The generator is Philox4x32-10
(Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) in int64 arithmetic on whole
batches. It accepts tensors, to draw on any device, and NumPy arrays, which are four times as fast
for a few numbers. There is no loop over samples and no random state to save.
"""

import math
from collections.abc import Mapping
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Words = TypeVar("Words", Tensor, NDArray[np.int64])
"""Integers in [0, 2**32), stored as int64."""

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10


def _multiply(a: int, b: Words) -> tuple[Words, Words]:
    """Return the high and low 32 bits of a 32 x 32 bit product.

    The signed 64-bit product wraps around with the correct bits. The shift fills in copies of the
    sign bit, which the mask removes.
    """
    product = b * a
    return (product >> 32) & _MASK, product & _MASK


def philox(
    counter: tuple[Words, Words, Words, Words], seed: int
) -> tuple[Words, Words, Words, Words]:
    """Encrypt 128-bit counters under a 64-bit key: Philox4x32-10.

    Args:
        counter: Four int64 tensors or arrays with values in [0, 2**32), broadcastable against each
            other.
        seed: The key; its low 64 bits are used.

    Returns:
        Four int64 tensors or arrays of independent uniform integers in [0, 2**32).
    """
    c0, c1, c2, c3 = counter
    k0, k1 = seed & _MASK, (seed >> 32) & _MASK
    for _ in range(_ROUNDS):
        high0, low0 = _multiply(_MULTIPLIERS[0], c0)
        high1, low1 = _multiply(_MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


def random_bits(
    counts: Mapping[int, int], positions: Tensor, iteration: int, seed: int
) -> list[Tensor]:
    """Draw uniform 32-bit integers for each sample, for several uses at once.

    Args:
        counts: Numbers per sample, by stream. Each use has its own stream; streams are independent.
        positions: [B] int64, the samples' positions in the global batch.
        iteration: The training iteration.
        seed: The seed of the run.

    Returns:
        For each stream [B, count] int64 in [0, 2**32), on the device of `positions`.
    """
    device = positions.device
    sizes = [-(-count // 4) for count in counts.values()]
    blocks = torch.cat([torch.arange(size, device=device) for size in sizes])
    # torch.full fills on the device; torch.tensor would copy from the host and wait.
    what = torch.cat(
        [
            torch.full((size,), stream & _MASK, dtype=torch.int64, device=device)
            for stream, size in zip(counts, sizes, strict=True)
        ]
    )
    when = torch.full((), iteration & _MASK, dtype=torch.int64, device=device)
    words = torch.stack(philox((blocks, positions[:, None], when, what), seed), dim=-1)
    each = torch.split(words, sizes, dim=1)
    return [w.flatten(1)[:, :n] for w, n in zip(each, counts.values(), strict=True)]


def uniform(bits: Tensor) -> Tensor:
    """Map 32-bit integers to [0, 1): float32, multiples of 2**-24."""
    return (bits >> 8).float() * 2**-24


def integers(bits: Tensor, low: int, high: int) -> Tensor:
    """Map 32-bit integers to low..high-1: int64, with a bias below (high - low) / 2**32."""
    return low + ((bits * (high - low)) >> 32)


def normal(bits: Tensor) -> Tensor:
    """Map 32-bit integers to standard normal noise by the Box-Muller transform.

    The uniform number in the logarithm is in (0, 1], so no draw is infinite. The largest magnitude
    is sqrt(2 * 32 * ln 2) = 6.66.

    Args:
        bits: [B, N] with even N; each pair of integers gives a pair of numbers.

    Returns:
        [B, N] float32.
    """
    pairs = bits.reshape(len(bits), -1, 2)
    radius = torch.sqrt(-2.0 * torch.log((pairs[..., 0].double() + 1.0) * 2.0**-32))
    angle = (2.0 * math.pi * 2.0**-32) * pairs[..., 1].double()
    noise = torch.stack((radius * torch.cos(angle), radius * torch.sin(angle)), dim=-1)
    return noise.float().flatten(1)


def permute(index: Tensor, size: int, seed: int, epoch: Tensor | int) -> Tensor:
    """Map indices through a pseudo-random permutation of 0..size-1, in constant memory.

    An eight-round Feistel network permutes the cells (left, right) of a nearly square rectangle of
    at least `size` cells. The few values that leave the range are permuted again until they fall
    inside ("cycle walking").

    Args:
        index: int64 indices in 0..size-1.
        size: The number of elements.
        seed: The seed of the run.
        epoch: Which permutation: a number, or one number per index.

    Returns:
        int64 with the shape of `index`, on the CPU (where `index` must be).
    """
    rows = math.isqrt(size - 1) + 1
    columns = -(-size // rows)
    epochs = np.asarray(epoch, dtype=np.int64) & _MASK
    zero = np.zeros(1, dtype=np.int64)

    def feistel(value: NDArray[np.int64]) -> NDArray[np.int64]:
        left, right = np.divmod(value, columns)
        height, width = rows, columns
        for round_ in range(8):
            word = philox((right, epochs, zero, zero + (_PERMUTATION_STREAM + round_)), seed)[0]
            left, right = right, (left + ((word * height) >> 32)) % height
            height, width = width, height
        return left * columns + right

    value = feistel(index.numpy())
    while (outside := value >= size).any():
        value = np.where(outside, feistel(value), value)
    return torch.from_numpy(value)


# Far from the streams of the training step (draws.py), so that permutations and noises are
# independent.
_PERMUTATION_STREAM = 0x50000000
