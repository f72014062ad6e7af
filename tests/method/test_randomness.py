"""Compare Philox with its published vectors and integer arithmetic; check the distributions."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sid_lsg.method.randomness import integers, normal, permute, philox, random_bits, uniform

ONES = 0xFFFFFFFF
WORDS = st.integers(0, ONES)
MANY = torch.arange(400_000)
bounded = settings(max_examples=40, deadline=None, derandomize=True)


def reference(counter: list[int], seed: int) -> list[int]:
    """Compute Philox4x32-10 in Python's unbounded integers."""
    x, k = list(counter), [seed & ONES, (seed >> 32) & ONES]
    for _ in range(10):
        p, q = 0xD2511F53 * x[0], 0xCD9E8D57 * x[2]
        x = [(q >> 32) ^ x[1] ^ k[0], q & ONES, (p >> 32) ^ x[3] ^ k[1], p & ONES]
        k = [(k[0] + 0x9E3779B9) & ONES, (k[1] + 0xBB67AE85) & ONES]
    return x


def encrypt(counter: list[int], seed: int) -> list[int]:
    c0, c1, c2, c3 = (torch.tensor(word) for word in counter)
    return [int(word) for word in philox((c0, c1, c2, c3), seed)]


@pytest.mark.parametrize(
    ("counter", "seed", "expected"),
    [
        ("00000000 00000000 00000000 00000000", 0, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", -1, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            "243f6a88 85a308d3 13198a2e 03707344",
            0x299F31D0_A4093822,
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_philox_matches_the_known_answers_of_random123(
    counter: str, seed: int, expected: str
) -> None:
    answer = encrypt([int(word, 16) for word in counter.split()], seed)
    assert [f"{word:08x}" for word in answer] == expected.split()


@bounded
@given(counter=st.lists(WORDS, min_size=4, max_size=4), seed=st.integers(0, 2**64 - 1))
def test_philox_equals_integer_arithmetic(counter: list[int], seed: int) -> None:
    assert encrypt(counter, seed) == reference(counter, seed)
    c0, c1, c2, c3 = np.array(counter)[:, None]
    assert np.stack(philox((c0, c1, c2, c3), seed))[:, 0].tolist() == reference(counter, seed)


def test_philox_broadcasts_its_counter() -> None:
    zero = torch.tensor(0)
    words = philox((torch.arange(3)[:, None], torch.arange(5), zero, zero), 7)
    assert [word.shape for word in words] == [(3, 5)] * 4
    assert [int(word[2, 4]) for word in words] == reference([2, 4, 0, 0], 7)


def bits_of(count: int, positions: Tensor, iteration: int, stream: int, seed: int) -> Tensor:
    """Draw the bits of one stream."""
    return random_bits({stream: count}, positions, iteration, seed)[0]


def test_random_bits_use_the_counter_block_position_iteration_stream() -> None:
    bits = bits_of(6, torch.tensor([3, 900]), iteration=11, stream=5, seed=42)
    for row, position in zip(bits.tolist(), (3, 900), strict=True):
        blocks = [reference([block, position, 11, 5], 42) for block in (0, 1)]
        assert row == (blocks[0] + blocks[1])[:6]


@bounded
@given(count=st.integers(1, 40), split=st.integers(1, 7), more=st.integers(0, 9))
def test_a_number_is_independent_of_what_else_is_drawn(count: int, split: int, more: int) -> None:
    def bits(count: int, positions: Tensor) -> Tensor:
        return bits_of(count, positions, 3, 4, 5)

    positions = torch.arange(8)
    whole, left, right = (bits(count, p) for p in (positions, positions[:split], positions[split:]))
    assert whole.shape == (8, count)
    assert torch.equal(whole, torch.cat([left, right]))
    assert torch.equal(whole, bits(count + more, positions)[:, :count])
    assert torch.equal(whole.flip(0), bits(count, positions.flip(0)))


@bounded
@given(counts=st.dictionaries(st.integers(0, 2**20), st.integers(1, 13), min_size=1, max_size=5))
def test_streams_can_be_drawn_together(counts: dict[int, int]) -> None:
    positions = torch.arange(3)
    together = random_bits(counts, positions, 1, 2)
    for bits, (stream, count) in zip(together, counts.items(), strict=True):
        assert torch.equal(bits, bits_of(count, positions, 1, stream, 2))


def test_every_coordinate_changes_the_draw() -> None:
    position = torch.tensor([1])
    draws = [
        bits_of(8, position, 2, 3, 4),
        bits_of(8, position + 1, 2, 3, 4),
        bits_of(8, position, 3, 3, 4),
        bits_of(8, position, 2, 4, 4),
        bits_of(8, position, 2, 3, 5),
        bits_of(8, position, 2, 3, 4 + 2**32),
    ]
    numbers = torch.cat(draws).flatten().tolist()
    assert len(set(numbers)) == len(numbers)


def assert_even(values: Tensor, size: int) -> None:
    """Check that 0..size-1 are equally frequent: Pearson's chi-squared within four deviations."""
    counts, expected = torch.bincount(values, minlength=size).double(), len(values) / size
    chi_squared = float(((counts - expected) ** 2 / expected).sum())
    assert len(counts) == size
    assert chi_squared < size - 1 + 4 * math.sqrt(2 * (size - 1))


def test_extreme_bits_stay_in_range() -> None:
    zeros, ones = torch.tensor([[0, 0]]), torch.tensor([[ONES, ONES]])
    assert uniform(zeros[:, 0]).item() == 0.0
    assert integers(zeros[:, 0], 20, 980).item() == 20
    assert normal(zeros).tolist() == [[pytest.approx(math.sqrt(64 * math.log(2))), 0.0]]
    assert uniform(ones[:, 0]).item() == 1.0 - 2.0**-24
    assert integers(ones[:, 0], 20, 980).item() == 979
    assert normal(ones).abs().tolist() == [[0.0, 0.0]]


def test_normal_is_the_box_muller_transform() -> None:
    bits = bits_of(4, torch.tensor([0, 5]), 1, 2, 3)
    for row, (a, b, c, d) in zip(normal(bits).tolist(), bits.tolist(), strict=True):
        z = [math.sqrt(2 * math.log(2**32 / (u + 1))) for u in (a, c)]
        turn = [2 * math.pi * v / 2**32 for v in (b, d)]
        expected = [f(x) * r for r, x in zip(z, turn, strict=True) for f in (math.cos, math.sin)]
        assert row == pytest.approx(expected, rel=1e-6, abs=1e-7)


def test_normal_has_standard_moments() -> None:
    noise = normal(bits_of(2, MANY[:200_000], 0, 0, 0))
    assert noise.dtype == torch.float32
    assert noise.shape == (200_000, 2)
    assert noise.isfinite().all()
    x = noise.double().flatten()
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        error = float((x**power).mean()) - moment
        assert abs(error) < 4 * math.sqrt(variance / len(x)), f"moment {power}"
    both, along = noise.double().prod(1).mean(), (noise[1:, 0] * noise[:-1, 0]).double().mean()
    assert abs(both) < 4 / math.sqrt(200_000)  # both halves of a pair, and neighbouring samples
    assert abs(along) < 4 / math.sqrt(200_000)
    # Check the tails: P(|x| > 3) and P(|x| > 4).
    for bound in (3.0, 4.0):
        expected = math.erfc(bound / math.sqrt(2)) * len(x)
        assert abs(int((x.abs() > bound).sum()) - expected) < 4 * math.sqrt(expected)


def test_uniform_is_uniform_on_the_unit_interval() -> None:
    u = uniform(bits_of(1, MANY, 0, 0, 0)[:, 0])
    assert u.dtype == torch.float32
    assert 0 <= float(u.min()) < 1e-4
    assert 1 - 1e-4 < float(u.max()) < 1
    assert abs(float(u.double().mean()) - 0.5) < 4 / math.sqrt(12 * len(u))
    assert_even((u * 50).long(), 50)


def test_integers_are_uniform() -> None:
    t = integers(bits_of(1, MANY, 0, 0, 0)[:, 0], 20, 980)
    assert t.dtype == torch.int64
    assert (int(t.min()), int(t.max())) == (20, 979)
    assert_even(t - 20, 960)


@bounded
@given(low=st.integers(-1000, 1000), size=st.integers(1, 2**31 - 1), seed=st.integers(0, 2**64 - 1))
def test_integers_stay_in_range(low: int, size: int, seed: int) -> None:
    drawn = integers(bits_of(1, torch.arange(50), 0, 0, seed)[:, 0], low, low + size)
    assert int(drawn.min()) >= low
    assert int(drawn.max()) < low + size


@bounded
@given(size=st.integers(1, 300), seed=st.integers(0, 2**64 - 1), epoch=st.integers(0, 2**32 - 1))
def test_permute_is_a_bijection(size: int, seed: int, epoch: int) -> None:
    order = permute(torch.arange(size), size, seed, epoch)
    assert torch.equal(order.sort().values, torch.arange(size))


def test_the_order_of_earlier_versions_is_kept() -> None:
    assert permute(torch.arange(10), 10, 0, 0).tolist() == [3, 9, 8, 6, 7, 1, 2, 5, 0, 4]
    places = permute(torch.tensor([[0, 1], [9_999_999, 5]]), 10_000_000, 2**40 + 7, 12)
    assert places.tolist() == [[4654640, 1204079], [4381334, 5238861]]


@pytest.mark.parametrize("size", [4096, 4097, 10_007])
def test_permute_is_a_bijection_for_large_sizes(size: int) -> None:
    order = permute(torch.arange(size), size, 1, 2)
    assert torch.equal(order.sort().values, torch.arange(size))


def test_permute_covers_a_huge_range() -> None:
    size, index = 2**40 + 3, torch.arange(2000)
    order = permute(index, size, 0, 0)
    assert len(order.unique()) == 2000
    assert 0 <= int(order.min()) < size // 100
    assert size - size // 100 < int(order.max()) < size


@settings(bounded, max_examples=10)
@given(size=st.integers(50, 300), seed=st.integers(0, 2**32), epoch=st.integers(0, 1000))
def test_permutations_differ_by_epoch_and_seed(size: int, seed: int, epoch: int) -> None:
    def order(seed: int, epoch: int) -> list[int]:
        return permute(torch.arange(size), size, seed, epoch).tolist()

    orders = [order(seed, epoch), order(seed, epoch + 1), order(seed + 1, epoch)]
    assert orders[0] not in (orders[1], orders[2], list(range(size)))
    assert orders[1] != orders[2]
    # Two independent orders agree in one place on average, and practically never in twelve.
    assert sum(a == b for a, b in zip(orders[0], orders[1], strict=True)) < 12


def test_permute_accepts_one_epoch_per_index() -> None:
    index, epochs = torch.arange(12) % 6, torch.arange(12) // 6
    apart = [permute(torch.arange(6), 6, 9, epoch) for epoch in (0, 1)]
    assert torch.equal(permute(index, 6, 9, epochs), torch.cat(apart))
    assert not torch.equal(*apart)


@pytest.mark.parametrize("size", [10, 300])
def test_every_place_is_equally_likely_over_epochs(size: int) -> None:
    epochs = 20_000
    places = permute(torch.full((epochs,), size - 1), size, 0, torch.arange(epochs))
    assert_even(places, size)
