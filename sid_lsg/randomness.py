"""Counter-based random numbers: every draw is a pure function of where it is used.

A draw depends on (seed, stream, iteration, global sample position, index) and on nothing else: not
on the micro-batch size, the number of ranks, what was evaluated in between, or a restart. The
generator is Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011),
written in int64 tensor arithmetic, so a whole batch is drawn at once, on any device, without a loop
over samples and without a random state to save.
"""

import math

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10


def _multiply(a: int, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return the high and low 32 bits of a 32 x 32 bit product, within signed 64-bit integers."""
    low_half, high_half = a * (b & 0xFFFF), a * (b >> 16)  # both below 2**48
    middle = high_half + (low_half >> 16)
    return middle >> 16, ((middle & 0xFFFF) << 16) | (low_half & 0xFFFF)


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], seed: int) -> tuple[Tensor, ...]:
    """Encrypt 128-bit counters under a 64-bit key: Philox4x32-10.

    Args:
        counter: Four int64 tensors with values in [0, 2**32), broadcastable against each other.
        seed: The key; its low 64 bits are used.

    Returns:
        Four int64 tensors of independent uniform integers in [0, 2**32).
    """
    c0, c1, c2, c3 = torch.broadcast_tensors(*counter)
    k0, k1 = seed & _MASK, (seed >> 32) & _MASK
    for _ in range(_ROUNDS):
        high0, low0 = _multiply(_MULTIPLIERS[0], c0)
        high1, low1 = _multiply(_MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


def random_bits(count: int, positions: Tensor, iteration: int, stream: int, seed: int) -> Tensor:
    """Draw `count` uniform 32-bit integers for each sample.

    Args:
        count: How many numbers each sample needs.
        positions: [B] int64, the samples' positions in the global batch.
        iteration: The training iteration.
        stream: What the draw is for; draws of different streams are independent.
        seed: The seed of the run.

    Returns:
        [B, count] int64 in [0, 2**32), on the device of `positions`.
    """
    blocks = torch.arange(-(-count // 4), device=positions.device)
    # torch.full fills on the device; torch.tensor would copy from the host and wait.
    when = torch.full((), iteration & _MASK, dtype=torch.int64, device=positions.device)
    what = torch.full((), stream & _MASK, dtype=torch.int64, device=positions.device)
    words = philox((blocks[None, :], positions[:, None], when, what), seed)
    return torch.stack(words, dim=-1).flatten(1)[:, :count]


def uniform(positions: Tensor, iteration: int, stream: int, seed: int) -> Tensor:
    """Draw one uniform number in [0, 1) per sample: [B] float32, a multiple of 2**-24."""
    bits = random_bits(1, positions, iteration, stream, seed)[:, 0]
    return (bits >> 8).float() * 2**-24


def integers(
    low: int, high: int, positions: Tensor, iteration: int, stream: int, seed: int
) -> Tensor:
    """Draw one integer in low..high-1 per sample: [B] int64 (bias below (high - low) / 2**32)."""
    bits = random_bits(1, positions, iteration, stream, seed)[:, 0]
    return low + ((bits * (high - low)) >> 32)


def normal(
    shape: tuple[int, ...], positions: Tensor, iteration: int, stream: int, seed: int
) -> Tensor:
    """Draw standard normal noise by the Box-Muller transform: [B, *shape] float32.

    The uniform under the logarithm lies in (0, 1], so no draw is infinite; the largest magnitude is
    sqrt(2 * 32 * ln 2) = 6.66.
    """
    count = math.prod(shape)
    pairs = random_bits(count + count % 2, positions, iteration, stream, seed).unflatten(1, (-1, 2))
    radius = torch.sqrt(-2.0 * torch.log((pairs[..., 0].double() + 1.0) * 2.0**-32))
    angle = (2.0 * math.pi * 2.0**-32) * pairs[..., 1].double()
    noise = torch.stack((radius * torch.cos(angle), radius * torch.sin(angle)), dim=-1)
    return noise.float().flatten(1)[:, :count].reshape(-1, *shape)


def permute(index: Tensor, size: int, seed: int, epoch: Tensor | int) -> Tensor:
    """Map indices through a pseudo-random permutation of 0..size-1, in constant memory.

    An eight-round Feistel network permutes the smallest square of a power of two that holds `size`;
    values that leave the range are sent through again until they fall inside ("cycle walking"),
    at most four times on average, since the square is at most four times too large.

    Args:
        index: int64 indices in 0..size-1.
        size: The number of elements.
        seed: The seed of the run.
        epoch: Which permutation; a number, or one per index.

    Returns:
        int64, of the shape of `index`.
    """
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    epochs = torch.as_tensor(epoch, device=index.device).expand_as(index)
    zero = torch.zeros((), dtype=torch.int64, device=index.device)

    def feistel(value: Tensor, epoch: Tensor) -> Tensor:
        left, right = value >> half, value & mask
        for round_ in range(8):
            key = torch.full_like(zero, _PERMUTATION_STREAM + round_)
            left, right = right, left ^ (philox((right, epoch & _MASK, zero, key), seed)[0] & mask)
        return (left << half) | right

    value = feistel(index, epochs)
    while bool((outside := value >= size).any()):
        value = torch.where(outside, feistel(value, epochs), value)
    return value


# Far from the streams of the training step (see draws.py), so that orders and noises never share.
_PERMUTATION_STREAM = 0x50000000
