"""Compare precision, recall, density, coverage and KID with loops over all pairs."""

import itertools
from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis.extra import numpy as hnp
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sid_lsg.messages.errors import UsageError
from sid_lsg.metrics import manifold
from sid_lsg.metrics.manifold import (
    Overlap,
    kernel_distance,
    kth_distances,
    nearest_distances,
    overlap,
)

NAMES = ["precision", "recall", "density", "coverage"]


def normal(count: int, seed: int, dimension: int = 6, spread: float = 1.0) -> Tensor:
    """Draw features with a non-zero mean that is the same for every seed."""
    noise = np.random.default_rng(seed).standard_normal((count, dimension))
    return torch.from_numpy(spread * noise + np.linspace(-2, 5, dimension))


def squared(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return squared distances from differences; exact for integers."""
    return np.square(x[:, None] - y[None]).sum(2)


def brute_radii(x: np.ndarray, k: int) -> np.ndarray:
    """Return squared distances to the k-th nearest other point."""
    distances = squared(x, x)
    return np.array([sorted(np.delete(row, i))[k - 1] for i, row in enumerate(distances)])


def brute(generated: Tensor, reference: Tensor, k: int = 3) -> list[float]:
    """Compute precision, recall, density and coverage with loops."""
    x, y = generated.numpy(), reference.numpy()
    between, r_x, r_y = squared(x, y), brute_radii(x, k), brute_radii(y, k)
    n, m = range(len(x)), range(len(y))
    return [
        sum(any(between[i, j] <= r_y[j] for j in m) for i in n) / len(x),
        sum(any(between[i, j] <= r_x[i] for i in n) for j in m) / len(y),
        sum(between[i, j] <= r_y[j] for i in n for j in m) / (k * len(x)),
        sum(min(between[i, j] for i in n) <= r_y[j] for j in m) / len(y),
    ]


def brute_kid(x: Tensor, y: Tensor) -> float:
    """Compute MMD^2 as in Bińkowski et al., one pair at a time."""
    a, b = x.double().numpy(), y.double().numpy()

    def kernel(u: np.ndarray, v: np.ndarray) -> float:
        return float((np.dot(u, v) / len(u) + 1) ** 3)

    within_a = sum(kernel(a[i], a[j]) for i, j in itertools.permutations(range(len(a)), 2))
    within_b = sum(kernel(b[i], b[j]) for i, j in itertools.permutations(range(len(b)), 2))
    between = sum(kernel(u, v) for u in a for v in b)
    n, m = len(a), len(b)
    return within_a / (n * (n - 1)) + within_b / (m * (m - 1)) - 2 * between / (n * m)


def plain(scores: Overlap) -> list[float]:
    assert {score.dtype for score in scores} == {torch.float64}
    return [float(score) for score in scores]


# ---------------------------------------------------------------------- against loops


@pytest.mark.parametrize(
    ("n", "m", "k", "dimension"), [(40, 60, 3, 6), (25, 9, 1, 2), (7, 30, 5, 20)]
)
@pytest.mark.parametrize("chunk", [1, 7, 4096])
def test_overlap_equals_loops(n: int, m: int, k: int, dimension: int, chunk: int) -> None:
    generated, reference = normal(n, 1, dimension, spread=0.8), normal(m, 2, dimension)
    expected = brute(generated, reference, k)
    assert plain(overlap(generated, reference, k, chunk)) == expected
    assert 0 < expected[0] < 1 or k == 5  # not trivially 0 or 1


@pytest.mark.parametrize("chunk", [1, 16, 37, 4096])
def test_distances_equal_those_of_a_sorted_list(chunk: int) -> None:
    x, y = normal(37, 1), normal(20, 2)
    for k in (1, 3, 36):
        expected = np.sqrt(brute_radii(x.numpy(), k))
        np.testing.assert_allclose(kth_distances(x, k, chunk), expected, rtol=1e-14)
    nearest = np.sqrt(squared(x.numpy(), y.numpy()).min(1))
    np.testing.assert_allclose(nearest_distances(x, y, chunk), nearest, rtol=1e-14)
    others = nearest_distances(x, x, chunk, exclude_self=True)
    torch.testing.assert_close(others, kth_distances(x, 1, chunk), rtol=0, atol=0)
    assert not nearest_distances(x, x, chunk).any()


@pytest.mark.parametrize("chunk", [1, 7, 4096])
def test_the_kernel_distance_equals_its_definition(chunk: int) -> None:
    x, y = normal(23, 1, 5, spread=1.3), normal(31, 2, 5)
    result = kernel_distance(x, y, chunk)
    assert result.dtype == torch.float64
    assert float(result) == pytest.approx(brute_kid(x, y), rel=1e-10)


def test_the_kernel_distance_is_unbiased() -> None:
    trials = torch.stack([kernel_distance(normal(8, i), normal(8, 1000 + i)) for i in range(400)])
    assert abs(float(trials.mean())) < 4 * float(trials.std()) / 20
    assert (trials < 0).any()
    assert kernel_distance(normal(50, 1), normal(50, 2) + 1) > 8 * trials.mean().abs()


def test_half_precision_features_are_compared_in_float64() -> None:
    x, y = normal(30, 1).float(), normal(30, 2).bfloat16()
    assert plain(overlap(x, y)) == brute(x.double(), y.double())
    assert float(kernel_distance(x, y)) == pytest.approx(brute_kid(x, y), rel=1e-10)


def test_features_far_from_the_origin_keep_their_precision() -> None:
    x, y = normal(40, 1), normal(50, 2)
    far = 2.0**24  # |x|^2 is 3e14: without centring, distances would be off by 0.05
    x, y = (x + far) - far, (y + far) - far  # drop the bits that the shift rounds away
    assert plain(overlap(x + far, y + far)) == brute(x, y)
    expected = np.sqrt(brute_radii(x.numpy(), 3))
    np.testing.assert_allclose(kth_distances(x + far, 3), expected, rtol=1e-8)
    nearest = nearest_distances(x + far, y + far)
    np.testing.assert_allclose(nearest, nearest_distances(x, y), rtol=1e-8)


# ---------------------------------------------------------------------- degenerate sets


@pytest.mark.parametrize("chunk", [1, 13, 4096])
def test_scores_of_identical_sets(chunk: int) -> None:
    x = normal(40, 1)
    precision, recall, density, coverage = plain(overlap(x, x.clone(), 3, chunk))
    assert (precision, recall, coverage) == (1, 1, 1)
    # A ball contains its centre and k neighbours, the last one on the surface.
    assert density == pytest.approx(4 / 3, rel=1e-15)
    shuffled = x[torch.randperm(40, generator=torch.Generator().manual_seed(0))]
    assert plain(overlap(shuffled, x, 3, chunk)) == [precision, recall, density, coverage]
    # The unbiased estimate leaves out the kernel of a point with itself.
    assert float(kernel_distance(x, x)) == pytest.approx(brute_kid(x, x), rel=1e-10)
    assert kernel_distance(x, x) < 0


def test_scores_of_disjoint_sets_are_zero() -> None:
    assert plain(overlap(normal(20, 1), normal(20, 2) + 100)) == [0, 0, 0, 0]


def test_duplicates_have_balls_of_radius_zero() -> None:
    point, others = normal(1, 1), normal(12, 2)
    reference = torch.cat([point.expand(4, -1), others])  # k = 3 others at the same place
    assert kth_distances(reference, 3)[:4].tolist() == [0, 0, 0, 0]
    assert nearest_distances(point, reference).tolist() == [0]
    near, same = point.expand(5, -1) + 1e-7, point.expand(5, -1)
    assert (overlap(near, reference, reference_radii=torch.zeros(16))).precision == 0
    assert plain(overlap(same, reference)) == brute(same, reference)
    collapsed = overlap(same, reference)
    assert (collapsed.precision, collapsed.recall) == (1, 4 / 16)


def test_a_far_outlier_affects_only_its_own_ball() -> None:
    reference = torch.cat([normal(60, 1), torch.full((1, 6), 1e6).double()])
    generated = normal(50, 2) + 1.5
    assert plain(overlap(generated, reference)) == brute(generated, reference)
    with_outlier = torch.cat([generated, torch.full((1, 6), -1e6).double()])
    expected = brute(with_outlier, reference)
    assert plain(overlap(with_outlier, reference)) == expected
    assert expected[1] == 60 / 61  # known weakness of recall: one ball contains all but one point
    assert expected[3] < 0.9  # coverage is not affected


# ---------------------------------------------------------------------- invariants


@st.composite
def lattices(draw: Callable) -> tuple[Tensor, Tensor]:
    """Draw two sets of small integers with many ties and duplicates."""
    dimension = draw(st.integers(1, 4))
    elements = st.integers(-3, 3)
    sizes = [draw(st.integers(4, 16)) for _ in range(2)]
    arrays = [draw(hnp.arrays(np.int64, (size, dimension), elements=elements)) for size in sizes]
    return torch.from_numpy(arrays[0]).double(), torch.from_numpy(arrays[1]).double()


@settings(deadline=None, max_examples=150)
@given(lattices(), st.integers(1, 3), st.integers(1, 20))
def test_ties_count_as_inside(sets: tuple[Tensor, Tensor], k: int, chunk: int) -> None:
    assert plain(overlap(*sets, k, chunk)) == brute(*sets, k)


@settings(deadline=None, max_examples=60)
@given(lattices(), st.integers(1, 3), st.integers(1, 20))
def test_precision_is_recall_with_the_roles_swapped(
    sets: tuple[Tensor, Tensor], k: int, chunk: int
) -> None:
    scores, swapped = overlap(*sets, k), overlap(*reversed(sets), k, chunk)
    assert (swapped.recall, swapped.precision) == (scores.precision, scores.recall)
    kid = float(kernel_distance(*sets, chunk))
    assert kid == pytest.approx(float(kernel_distance(*reversed(sets))), rel=1e-9, abs=1e-12)


@settings(deadline=None, max_examples=60)
@given(lattices(), st.randoms(use_true_random=False))
def test_order_and_translation_do_not_matter(sets: tuple[Tensor, Tensor], random: Any) -> None:
    x, y = sets
    orders = [random.sample(range(len(points)), len(points)) for points in sets]
    assert plain(overlap(x[orders[0]] + 0.3, y[orders[1]] + 0.3)) == plain(overlap(x, y))
    kid = float(kernel_distance(x[orders[0]], y[orders[1]]))
    assert kid == pytest.approx(float(kernel_distance(x, y)), rel=1e-9, abs=1e-12)


@settings(deadline=None, max_examples=60)
@given(lattices(), st.integers(0, 2**31), st.floats(0.01, 100))
def test_rotation_and_scale_do_not_matter(
    sets: tuple[Tensor, Tensor], seed: int, scale: float
) -> None:
    x, y = sets
    noise = np.random.default_rng(seed).standard_normal((x.shape[1],) * 2)
    rotation = torch.from_numpy(np.linalg.qr(noise)[0])
    assert plain(overlap(scale * x @ rotation, scale * y @ rotation)) == plain(overlap(x, y))
    kid = float(kernel_distance(x @ rotation, y @ rotation))
    assert kid == pytest.approx(float(kernel_distance(x, y)), rel=1e-9, abs=1e-12)


# ---------------------------------------------------------------------- cost


def test_known_radii_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    generated, reference = normal(30, 1), normal(40, 2)
    expected = overlap(generated, reference)
    radii = kth_distances(reference, 3)
    computed: list[int] = []
    compute = manifold._kth
    monkeypatch.setattr(
        manifold, "_kth", lambda x, *a, **o: (computed.append(len(x)), compute(x, *a, **o))[1]
    )
    assert overlap(generated, reference, reference_radii=radii) == expected
    assert computed == [30]
    assert overlap(generated, reference, reference_radii=0 * radii).precision == 0


class Largest(TorchDispatchMode):
    """Record the size of the largest tensor that an operation returns."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else [result]:
            if isinstance(value, Tensor):
                self.numel = max(self.numel, value.untyped_storage().nbytes() // value.itemsize)
        return result


def test_memory_is_bounded_by_the_chunk() -> None:
    count, chunk = 5000, 256
    reference, generated = normal(count, 1, 4), normal(count, 2, 4)
    with Largest() as largest:
        overlap(generated, reference, chunk=chunk)
        kernel_distance(generated, reference, chunk)
        nearest_distances(generated, reference, chunk)
    assert chunk * count // 2 < largest.numel <= chunk * count


# ---------------------------------------------------------------------- errors


@pytest.mark.parametrize("count", [0, 1, 3])
def test_too_few_images_are_rejected(count: int) -> None:
    few, many = normal(count, 1), normal(20, 2)
    message = f"^{count} .* images: at least 4 are needed"
    for refused in (
        lambda: overlap(few, many),
        lambda: overlap(many, few),
        lambda: kth_distances(few, 3),
    ):
        with pytest.raises(UsageError, match=message):
            refused()


def test_sets_without_neighbours_are_rejected() -> None:
    one = normal(1, 1)
    assert nearest_distances(one, one).tolist() == [0]
    for refused in (
        lambda: nearest_distances(one, one, exclude_self=True),
        lambda: nearest_distances(one, one[:0]),
        lambda: kernel_distance(one, normal(5, 2)),
        lambda: kernel_distance(normal(5, 2), one),
    ):
        with pytest.raises(UsageError, match="images: at least"):
            refused()


def test_features_of_another_dimension_are_rejected() -> None:
    for compare in (overlap, kernel_distance, nearest_distances):
        with pytest.raises(UsageError, match=r"shapes \[9, 6\] and \[9, 5\] cannot be compared"):
            compare(normal(9, 1), normal(9, 2, 5))


@pytest.mark.parametrize(("options", "named"), [({"k": 0}, "k = 0"), ({"chunk": 0}, "chunk = 0")])
def test_options_below_one_are_rejected(options: dict[str, int], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        overlap(normal(9, 1), normal(9, 2), **options)
