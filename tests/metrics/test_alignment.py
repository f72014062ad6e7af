"""Compare alignment with numpy and scipy; each number detects the difference that it measures."""

import copy
import json
import math
import subprocess
import sys

import matplotlib
import matplotlib.pyplot as pyplot
import numpy as np
import pytest
import scipy.spatial
import scipy.stats
import torch
from PIL import Image, ImageFilter
from torch import Tensor

from sid_lsg.messages.errors import UsageError
from sid_lsg.metrics.alignment import (
    ImageSet,
    Pixels,
    PixelStatistics,
    draw,
    feature_alignment,
    neighbour_alignment,
    neighbour_distances,
    pixel_alignment,
    report,
)

SIZE = 16
QUANTILES = {"q05": 0.05, "q50": 0.5, "q95": 0.95}


def noise_images(count: int, seed: int, size: int = SIZE) -> Tensor:
    """Draw coloured noise [B, 3, size, size] uint8 in 40..200, with one mean per channel."""
    noise = np.random.default_rng(seed).integers(40, 161, (count, 3, size, size))
    return torch.from_numpy(noise + np.array([0, 20, 40])[:, None, None]).byte()


def statistics(images: Tensor) -> Pixels:
    metric = PixelStatistics(images.shape[-1])
    metric.update(images)
    return metric.compute()


def normal(count: int, seed: int, dimension: int = 5) -> Tensor:
    noise = np.random.default_rng(seed).standard_normal((count, dimension))
    return torch.from_numpy(noise * np.linspace(0.5, 3, dimension) + np.linspace(-2, 5, dimension))


def quantiles(values: np.ndarray) -> dict[str, float]:
    return {name: pytest.approx(np.quantile(values, q), rel=1e-12) for name, q in QUANTILES.items()}


# ---------------------------------------------------------------------- pixel statistics


def ring_spectrum(images: Tensor) -> np.ndarray:
    """Compute the mean power per radius, one frequency at a time."""
    size, count = images.shape[-1], len(images)
    total, members = np.zeros(size // 2 + 1), np.zeros(size // 2 + 1)
    for red, green, blue in images.double().numpy():
        luminance = (0.299 * red + 0.587 * green + 0.114 * blue) / 255
        power = np.abs(np.fft.fft2(luminance - luminance.mean())) ** 2 / size**2
        for row in range(size):
            for column in range(size):
                vertical, horizontal = min(row, size - row), min(column, size - column)
                radius = round(math.sqrt(vertical**2 + horizontal**2))
                if radius <= size // 2:
                    total[radius] += power[row, column]
                    members[radius] += 1
    return total / np.where(members, members, count)


@pytest.mark.parametrize("size", [6, 15, 16])
def test_statistics_equal_numpys(size: int) -> None:
    images = noise_images(7, 1, size)
    found = statistics(images)
    assert found.count == 7
    assert found.histogram.dtype == found.spectrum.dtype == torch.float64
    for channel in range(3):
        counts = np.bincount(images[:, channel].numpy().ravel(), minlength=256)
        np.testing.assert_allclose(found.histogram[channel], counts / counts.sum(), rtol=1e-14)
    np.testing.assert_allclose(found.histogram.sum(1), 1, rtol=1e-12)
    assert found.spectrum.shape == (size // 2 + 1,)
    np.testing.assert_allclose(found.spectrum, ring_spectrum(images), rtol=1e-10, atol=1e-25)
    assert found.spectrum[0] < 1e-25  # the mean is subtracted


def test_a_wave_has_power_at_its_radius() -> None:
    wave = 100 * np.cos(2 * np.pi * 4 * np.arange(32) / 32)
    images = torch.from_numpy(np.broadcast_to(128 + wave, (2, 3, 32, 32)).round()).byte()
    spectrum = statistics(images).spectrum
    assert spectrum.argmax() == 4
    assert spectrum[4] > 100 * spectrum.sum() / 101 * 0.95
    members = sum(
        round(math.hypot(x, y)) == 4 for x in range(-16, 16) for y in range(-16, 16)
    )  # two of them have half of the power 32^2 (100 / 255)^2 / 2 each
    assert float(spectrum[4]) * members == pytest.approx(32**2 * (100 / 255) ** 2 / 2, rel=0.01)


def test_statistics_add_up_over_batches_and_processes() -> None:
    images = noise_images(9, 1)
    whole = statistics(images)
    shares = [PixelStatistics(SIZE) for _ in range(2)]
    shares[0].update(images[:1])
    shares[0].update(images[1:6])
    shares[1].update(images[6:])
    shares[1].update(images[:0])
    merged = PixelStatistics(SIZE)
    merged.update(images[:0])
    for state in ("histogram", "power", "count"):  # as torchmetrics reduces over processes
        assert merged._reductions[state] is not None
        states = torch.stack([getattr(share, state) for share in shares])
        setattr(merged, state, merged._reductions[state](states))
    found = merged.compute()
    assert found.count == 9
    assert found.histogram.equal(whole.histogram)
    torch.testing.assert_close(found.spectrum, whole.spectrum, rtol=1e-12, atol=1e-25)


def test_reset_clears_the_statistics() -> None:
    metric = PixelStatistics(SIZE)
    metric.update(noise_images(3, 1))
    before = copy.deepcopy(metric.compute())
    metric.reset()
    metric.update(noise_images(4, 2))
    found, expected = metric.compute(), statistics(noise_images(4, 2))
    assert all(
        torch.as_tensor(a).equal(torch.as_tensor(b)) for a, b in zip(found, expected, strict=True)
    )
    assert not found.histogram.equal(before.histogram)


@pytest.mark.parametrize(
    "images",
    [
        noise_images(2, 1).float(),
        noise_images(2, 1, 8),
        noise_images(2, 1)[:, :1],
        noise_images(1, 1)[0],
    ],
    ids=["float", "size", "channels", "dimensions"],
)
def test_wrong_image_tensors_are_rejected(images: Tensor) -> None:
    metric = PixelStatistics(SIZE)
    with pytest.raises(UsageError) as caught:
        metric.update(images)
    assert str(list(images.shape)) in str(caught.value)
    assert f"give torch.uint8 [images, 3, {SIZE}, {SIZE}]" in str(caught.value)


def test_statistics_without_images_are_rejected() -> None:
    with pytest.raises(UsageError, match="^images of 5 pixels"):
        PixelStatistics(5)
    metric = PixelStatistics(SIZE)
    metric.update(noise_images(2, 1)[:0])
    with pytest.raises(UsageError, match="no images were added"):
        metric.compute()


# ---------------------------------------------------------------------- pixels


def test_pixel_alignment_equals_scipys_distances() -> None:
    mine, other = noise_images(4, 1), (noise_images(5, 2) * 0.7 + 20).byte()
    found = pixel_alignment(statistics(mine), statistics(other))
    for channel in range(3):
        x, y = (images[:, channel].double().numpy().ravel() for images in (mine, other))
        distance = scipy.stats.wasserstein_distance(x, y)
        assert found["wasserstein"][channel] == pytest.approx(distance, rel=1e-10)
        shares = [np.bincount(v.astype(int), minlength=256) / len(v) for v in (x, y)]
        variation = sum(max(a - b, 0) for a, b in zip(*shares, strict=True))
        assert found["total_variation"][channel] == pytest.approx(variation, rel=1e-10)
        for name, values in {"generated": x, "reference": y}.items():
            assert found["mean"][name][channel] == pytest.approx(values.mean(), rel=1e-12)
            assert found["deviation"][name][channel] == pytest.approx(values.std(), rel=1e-10)
    ratio = 10 * np.log10(ring_spectrum(mine)[1:] / ring_spectrum(other)[1:])
    assert found["power_db"]["rms"] == pytest.approx(math.sqrt((ratio**2).mean()), rel=1e-9)
    thirds = {"low": slice(1, 4), "middle": slice(4, 7), "high": slice(7, 9)}  # radii 1 to 8
    for name, third in thirds.items():
        means = [ring_spectrum(images)[third].mean() for images in (mine, other)]
        assert found["power_db"][name] == pytest.approx(10 * math.log10(means[0] / means[1]))


def flat(found: dict) -> list[float]:
    """Return the numbers of a report that are zero for equal sets."""
    return [*found["wasserstein"], *found["total_variation"], *found["power_db"].values()]


def test_equal_pixels_give_zeros() -> None:
    pixels = statistics(noise_images(4, 1))
    assert flat(pixel_alignment(pixels, pixels)) == [0] * 10


def test_brightness_shifts_the_distance_by_as_many_grey_levels() -> None:
    images = noise_images(6, 1)
    brighter = images + torch.tensor([0, 3, 7]).byte()[:, None, None]
    found = pixel_alignment(statistics(brighter), statistics(images))
    assert found["wasserstein"] == pytest.approx([0, 3, 7], abs=1e-10)
    shift = np.subtract(found["mean"]["generated"], found["mean"]["reference"])
    assert shift.tolist() == pytest.approx([0, 3, 7], abs=1e-10)
    assert found["deviation"]["generated"] == pytest.approx(found["deviation"]["reference"])
    assert list(found["power_db"].values()) == pytest.approx([0] * 4, abs=1e-9)


def test_contrast_changes_the_power_of_all_bands() -> None:
    images = 2 * (noise_images(6, 1) // 4)
    found = pixel_alignment(statistics(images // 2), statistics(images))
    assert list(found["power_db"].values()) == pytest.approx(
        [-20 * math.log10(2)] * 3 + [20 * math.log10(2)]
    )
    half = np.array(found["deviation"]["reference"]) / 2
    assert found["deviation"]["generated"] == pytest.approx(half.tolist())


def filtered(images: Tensor, how: ImageFilter.Filter) -> Tensor:
    made = [Image.fromarray(i.permute(1, 2, 0).numpy()).filter(how) for i in images]
    return torch.from_numpy(np.stack([np.asarray(i) for i in made])).permute(0, 3, 1, 2)


def test_blur_lowers_the_high_band_most() -> None:
    images = noise_images(6, 1, 32)
    blurred = filtered(images, ImageFilter.GaussianBlur(0.8))
    power = pixel_alignment(statistics(blurred), statistics(images))["power_db"]
    assert power["high"] < power["middle"] - 3 < power["low"] - 5
    assert power["low"] > -3
    assert power["high"] < -10
    swapped = pixel_alignment(statistics(images), statistics(blurred))["power_db"]
    assert [swapped[band] for band in ("low", "middle", "high")] == pytest.approx(
        [-power[band] for band in ("low", "middle", "high")]
    )
    assert swapped["rms"] == pytest.approx(power["rms"])


def test_flat_images_have_finite_decibels() -> None:
    plain = statistics(torch.full((3, 3, SIZE, SIZE), 90, dtype=torch.uint8))
    assert flat(pixel_alignment(plain, plain)) == [0] * 10
    noisy = pixel_alignment(statistics(noise_images(3, 1)), plain)["power_db"]
    assert 30 < min(noisy.values()) < max(noisy.values()) < 60


def test_images_of_different_sizes_are_rejected() -> None:
    with pytest.raises(UsageError, match="spectra of 9 and 17 radii: give images of one size"):
        pixel_alignment(statistics(noise_images(2, 1)), statistics(noise_images(2, 1, 32)))


# ---------------------------------------------------------------------- features


def moments(features: Tensor) -> tuple[Tensor, Tensor]:
    return features.mean(0), features.var(0)


def test_moments_are_compared_per_dimension() -> None:
    mine, other = normal(50, 1, 20) * 1.3 + 0.2, normal(60, 2, 20)
    found = feature_alignment(*moments(mine), *moments(other))
    x, y = mine.numpy(), other.numpy()
    shift = (x.mean(0) - y.mean(0)) / y.std(0, ddof=1)
    ratio = x.var(0, ddof=1) / y.var(0, ddof=1)
    rms = pytest.approx(np.sqrt((shift**2).mean()), rel=1e-12)
    mean = pytest.approx(scipy.stats.gmean(ratio), rel=1e-12)
    assert found == {
        "mean_shift": {"rms": rms} | quantiles(shift),
        "variance_ratio": {"geometric_mean": mean} | quantiles(ratio),
        "constant_dimensions": 0,
    }


def test_float32_moments_are_compared_in_float64() -> None:
    single = [value.float() for value in (*moments(normal(50, 1)), *moments(normal(60, 2)))]
    assert feature_alignment(*single) == feature_alignment(*(value.double() for value in single))


def test_a_known_shift_and_spread_are_measured() -> None:
    mean, variance = moments(normal(60, 2))
    found = feature_alignment(mean - 0.5 * variance.sqrt(), 4 * variance, mean, variance)
    assert found["mean_shift"]["rms"] == pytest.approx(0.5)
    assert found["mean_shift"]["q50"] == pytest.approx(-0.5)
    assert list(found["variance_ratio"].values()) == pytest.approx([4] * 4)


def test_constant_dimensions_are_excluded_and_counted() -> None:
    mine, other = moments(normal(50, 1)), moments(normal(60, 2))
    expected = feature_alignment(*mine, *other)
    padded = [torch.cat([value, torch.tensor([7.0, 8.0]).double()]) for value in (*mine, *other)]
    padded[3][-2:] = 0
    assert feature_alignment(*padded) == expected | {"constant_dimensions": 2}
    zero = torch.zeros(5)
    with pytest.raises(UsageError, match="reference features do not vary"):
        feature_alignment(*mine, zero, zero)


def test_a_collapsed_generator_has_zero_variance() -> None:
    mean, variance = moments(normal(60, 2).float())
    found = feature_alignment(mean, 0 * variance, mean, variance)
    assert list(found["variance_ratio"].values()) == [0] * 4


# ---------------------------------------------------------------------- neighbours


def test_neighbours_equal_those_of_a_kd_tree() -> None:
    mine, other = normal(70, 1) * 0.8, normal(200, 2)
    found = neighbour_alignment(mine, other, chunk=32)
    tree = scipy.spatial.KDTree(other.numpy())
    x = tree.query(mine.numpy(), 1)[0]
    y = tree.query(other.numpy(), 2)[0][:, 1]
    assert found["generated"] == quantiles(x)
    assert found["reference"] == quantiles(y)
    assert found["median_ratio"] == pytest.approx(np.median(x) / np.median(y), rel=1e-12)
    assert found["copied_share"] == (x <= np.quantile(y, 0.01)).mean()


def test_copies_raise_the_copied_share() -> None:
    mine, other = normal(400, 1), normal(400, 2)
    assert neighbour_alignment(mine, other)["copied_share"] < 0.03
    mine[:100] = other[100:200] + 1e-3
    found = neighbour_alignment(mine, other)
    assert 0.25 <= found["copied_share"] < 0.28
    assert found["generated"]["q05"] == pytest.approx(1e-3 * math.sqrt(5), rel=1e-6)
    assert neighbour_alignment(other, other)["copied_share"] == 1


def test_distant_images_have_a_large_median_ratio() -> None:
    found = neighbour_alignment(normal(100, 1) + 50, normal(100, 2))
    assert found["median_ratio"] > 20
    assert found["copied_share"] == 0


def test_a_reference_of_duplicates_has_no_median_ratio() -> None:
    pairs = normal(20, 2).repeat(2, 1)
    found = neighbour_alignment(normal(10, 1), pairs)
    assert found["median_ratio"] is None
    assert found["copied_share"] == 0
    assert neighbour_alignment(pairs[:5], pairs)["copied_share"] == 1
    with pytest.raises(UsageError, match="^1 reference images"):
        neighbour_alignment(pairs, pairs[:1])


# ---------------------------------------------------------------------- report and figure


@pytest.fixture
def sets() -> tuple[ImageSet, ImageSet]:
    mine = ImageSet(normal(40, 1).float(), statistics(noise_images(4, 1)))
    return mine, ImageSet(normal(60, 2).float(), statistics(noise_images(6, 2)))


def test_the_report_contains_every_comparison(sets: tuple[ImageSet, ImageSet]) -> None:
    mine, other = sets
    found = report(mine, other, neighbour_distances(mine.features, other.features))
    x, y = mine.features.double(), other.features.double()
    assert found == {
        "images": {"generated": 4, "reference": 6},
        "features": feature_alignment(*moments(x), *moments(y)),
        "neighbours": neighbour_alignment(x, y),
        "pixels": pixel_alignment(mine.pixels, other.pixels),
    }
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_the_report_uses_given_distances(sets: tuple[ImageSet, ImageSet]) -> None:
    mine, other = sets
    known = neighbour_distances(mine.features + 1, other.features)
    expected = neighbour_alignment(mine.features + 1, other.features)
    assert report(mine, other, known)["neighbours"] == expected


@pytest.mark.slow
def test_the_figure_shows_four_panels(sets: tuple[ImageSet, ImageSet]) -> None:
    mine, other = sets
    figure = draw(mine, other, neighbour_distances(mine.features, other.features))
    assert (figure.size, figure.mode) == ((1200, 900), "RGB")
    pixels = np.asarray(figure).astype(int)
    for rows in (slice(0, 450), slice(450, 900)):
        for columns in (slice(0, 600), slice(600, 1200)):
            panel = pixels[rows, columns]
            assert (np.ptp(panel, axis=2) > 60).sum() > 300  # coloured lines
            assert (panel.sum(2) > 700).mean() > 0.5  # on white
    again = draw(mine, other, neighbour_distances(mine.features, other.features))
    assert again.tobytes() == figure.tobytes()


@pytest.mark.slow
def test_degenerate_sets_are_drawn() -> None:
    plain = statistics(torch.full((1, 3, SIZE, SIZE), 90, dtype=torch.uint8))
    reference = ImageSet(normal(2, 2).repeat(4, 1), plain)
    collapsed = ImageSet(reference.features[:1].repeat(3, 1), plain)
    distances = neighbour_distances(collapsed.features, reference.features)
    assert draw(collapsed, reference, distances).size == (1200, 900)
    json.dumps(report(collapsed, reference, distances), allow_nan=False)


@pytest.mark.slow
def test_the_report_does_not_need_matplotlib() -> None:
    code = (
        "import sys, torch, torchmetrics; sys.modules['matplotlib.figure'] = None;"
        "from sid_lsg.metrics import alignment as a; f = torch.eye(4); p = a.PixelStatistics(8);"
        "p.update(torch.zeros(1, 3, 8, 8, dtype=torch.uint8)); s = a.ImageSet(f, p.compute());"
        "a.report(s, s, a.neighbour_distances(f, f))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_drawing_does_not_change_pyplot(sets: tuple[ImageSet, ImageSet]) -> None:
    backend, figures = matplotlib.get_backend(), pyplot.get_fignums()
    draw(*sets, neighbour_distances(sets[0].features, sets[1].features))
    assert (matplotlib.get_backend(), pyplot.get_fignums()) == (backend, figures)
