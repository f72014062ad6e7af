"""Compare the distributions of generated and reference images, in numbers and one figure."""

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchmetrics import Metric

from sid_lsg.messages.errors import UsageError
from sid_lsg.metrics.manifold import nearest_distances

_LUMINANCE = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)  # ITU-R BT.601
# Power of the luminance noise from rounding to 8 bits. Smaller power carries no information, and
# this floor keeps decibels finite for flat images.
_NOISE = float(_LUMINANCE.square().sum()) / 255**2 / 12


class Pixels(NamedTuple):
    """Pixel statistics of a set of images, on the CPU."""

    histogram: Tensor  # [3, 256] float64: share of a channel's pixels at each grey level
    spectrum: Tensor  # [S // 2 + 1] float64: mean power at a radius, in cycles per image
    count: int  # type: ignore[assignment]  # NamedTuple has a method of this name


class ImageSet(NamedTuple):
    """Features and pixel statistics of a set of images."""

    features: Tensor  # [N, D]
    pixels: Pixels


class Distances(NamedTuple):
    """Distances of both sets to the nearest reference image, float64."""

    generated: Tensor  # [N]
    reference: Tensor  # [M], to the nearest other reference image


class PixelStatistics(Metric):
    """Histogram and radially averaged power spectrum of images of one size."""

    full_state_update = False
    histogram: Tensor
    power: Tensor
    count: Tensor

    def __init__(self, size: int, **kwargs: Any) -> None:
        """Start empty, for images of `size` x `size` pixels."""
        super().__init__(**kwargs)
        if size < 6:
            raise UsageError(
                f"images of {size} pixels are too small for three bands: give 6 or more."
            )
        self.size = size
        self.add_state("histogram", torch.zeros(3, 256, dtype=torch.int64), "sum")
        self.add_state("power", torch.zeros(size, size, dtype=torch.float64), "sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), "sum")

    def update(self, images: Tensor) -> None:
        """Add images [B, 3, size, size] uint8.

        Power is |FFT|^2 (orthonormal) of the luminance in [0, 1] minus its mean. No window is used:
        leakage from the borders affects both sets equally.

        Raises:
            UsageError: If the dtype or shape differs.
        """
        if images.dtype != torch.uint8 or images.shape[1:] != (3, self.size, self.size):
            found, size = f"{images.dtype} {list(images.shape)}", self.size
            raise UsageError(f"images are {found}: give torch.uint8 [images, 3, {size}, {size}].")
        if not len(images):
            return  # the FFT rejects an empty batch
        for channel in range(3):
            self.histogram[channel] += torch.bincount(images[:, channel].flatten(), minlength=256)
        luminance = torch.einsum("bchw,c->bhw", images.double() / 255, _LUMINANCE.to(images.device))
        luminance -= luminance.mean((1, 2), keepdim=True)
        self.power += torch.fft.fft2(luminance, norm="ortho").abs().square().sum(0)
        self.count += len(images)

    def compute(self) -> Pixels:
        """Return the statistics; radius r averages all frequencies whose distance rounds to r."""
        if not (count := int(self.count)):
            raise UsageError("no images were added: there is nothing to compare.")
        frequencies = torch.fft.fftfreq(self.size, 1 / self.size, dtype=torch.float64)
        rings = torch.hypot(frequencies[:, None], frequencies).round().long().flatten()
        power = torch.bincount(rings, self.power.cpu().flatten()) / torch.bincount(rings) / count
        shares = self.histogram.cpu().double() / (count * self.size**2)
        return Pixels(shares, power[: self.size // 2 + 1], count)


def feature_alignment(
    generated_mean: Tensor,
    generated_variance: Tensor,
    reference_mean: Tensor,
    reference_variance: Tensor,
) -> dict[str, Any]:
    """Compare means and variances [D] of features, per dimension.

    Returns:
        `mean_shift` in standard deviations of the reference, `variance_ratio` (generated /
        reference), and the number of `constant_dimensions`, which are left out because the
        reference does not vary there.

    Raises:
        UsageError: If the reference varies in no dimension.
    """
    moments = (generated_mean, generated_variance, reference_mean, reference_variance)
    shift, ratio = _standardised(*moments)
    shifts = {"rms": float(shift.square().mean().sqrt())} | _quantiles(shift)
    ratios = {"geometric_mean": float(ratio.log().mean().exp())} | _quantiles(ratio)
    constant = len(reference_mean) - len(shift)
    return {"mean_shift": shifts, "variance_ratio": ratios, "constant_dimensions": constant}


def neighbour_distances(generated: Tensor, reference: Tensor, chunk: int = 4096) -> Distances:
    """Return the distances of generated [N, D] and reference [M, D] features to the reference."""
    return Distances(
        nearest_distances(generated, reference, chunk),
        nearest_distances(reference, reference, chunk, exclude_self=True),
    )


def neighbour_alignment(
    generated: Tensor, reference: Tensor, chunk: int = 4096, distances: Distances | None = None
) -> dict[str, Any]:
    """Compare distances of generated [N, D] and reference [M, D] features to the reference.

    `distances` are `neighbour_distances` of the features, if known.

    Returns:
        Quantiles of the distances of `generated` and `reference` images, the `median_ratio` (None
        if the reference's median is 0), and the `copied_share`: the share of generated images as
        near to a reference image as the nearest 1 % of reference images are to another one. More
        than 0.01 hints at copying.
    """
    distances = distances or neighbour_distances(generated, reference, chunk)
    ours, theirs = (_quantiles(d) for d in distances)
    closest = distances.reference.quantile(0.01)
    return {
        "generated": ours,
        "reference": theirs,
        "median_ratio": ours["q50"] / theirs["q50"] if theirs["q50"] else None,
        "copied_share": float((distances.generated <= closest).double().mean()),
    }


def pixel_alignment(generated: Pixels, reference: Pixels) -> dict[str, Any]:
    """Compare grey levels per channel, and power spectra.

    Returns:
        `wasserstein` (W1), `mean` and `deviation` in grey levels, and `total_variation`, each for
        red, green and blue. `power_db` (generated / reference): mean power of the `low`, `middle`
        and `high` third of the radii above 0, and the `rms` over these radii.

    Raises:
        UsageError: If the images differ in size.
    """
    if (ours := len(generated.spectrum)) != (theirs := len(reference.spectrum)):
        raise UsageError(f"spectra of {ours} and {theirs} radii: give images of one size.")
    levels = torch.arange(256, dtype=torch.float64)
    shares = torch.stack([generated.histogram, reference.histogram])
    mean = shares @ levels
    deviation = (shares * (levels - mean[..., None]).square()).sum(2).sqrt()
    difference = shares[0] - shares[1]
    spectra = torch.stack([generated.spectrum, reference.spectrum])[:, 1:].clamp(min=_NOISE)
    bands = [10 * math.log10(x / y) for x, y in (b.mean(1) for b in spectra.tensor_split(3, 1))]
    rms = float((10 * (spectra[0] / spectra[1]).log10()).square().mean().sqrt())
    return {
        "wasserstein": difference.cumsum(1).abs().sum(1).tolist(),
        "total_variation": (difference.abs().sum(1) / 2).tolist(),
        "mean": {"generated": mean[0].tolist(), "reference": mean[1].tolist()},
        "deviation": {"generated": deviation[0].tolist(), "reference": deviation[1].tolist()},
        "power_db": {"low": bands[0], "middle": bands[1], "high": bands[2], "rms": rms},
    }


def report(generated: ImageSet, reference: ImageSet, distances: Distances) -> dict[str, Any]:
    """Return all numbers, for JSON; `distances` are `neighbour_distances` of the features."""
    features = (generated.features, reference.features)
    return {
        "images": {"generated": generated.pixels.count, "reference": reference.pixels.count},
        "features": feature_alignment(*_moments(generated), *_moments(reference)),
        "neighbours": neighbour_alignment(*features, distances=distances),
        "pixels": pixel_alignment(generated.pixels, reference.pixels),
    }


def draw(generated: ImageSet, reference: ImageSet, distances: Distances) -> Image.Image:
    """Draw histograms, spectra, neighbour distances and feature shifts, 1200 x 900 pixels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 9), dpi=100, layout="constrained")
    figure.suptitle("Generated and reference images")
    grey, spectra, near, shifts = figure.subplots(2, 2).flat
    bins = np.linspace(0, max(float(d.quantile(0.995)) for d in distances) or 1, 61).tolist()
    for name, images, line, colour, d in (
        ("reference", reference, "--", "tab:blue", distances.reference.cpu()),
        ("generated", generated, "-", "tab:orange", distances.generated.cpu()),
    ):
        pixels, total = images.pixels, f"{name} ({images.pixels.count:,} images)"
        for channel, shares in zip(("red", "green", "blue"), pixels.histogram, strict=True):
            four = 100 * shares.view(64, 4).sum(1)  # groups of 4 levels: single levels are jagged
            grey.plot(range(2, 256, 4), four, line, color=channel, label=f"{channel}, {name}")
        power = pixels.spectrum[1:].clamp(min=_NOISE)
        spectra.loglog(range(1, len(power) + 1), power, line, color=colour, label=total)
        near.hist(d, bins, weights=[100 / len(d)] * len(d), color=colour, alpha=0.55, label=name)
    closest = float(distances.reference.quantile(0.01))
    near.axvline(closest, color="black", ls=":", label="nearest 1 % of reference images")
    shift, ratio = _standardised(*_moments(generated), *_moments(reference))
    for axes, values, colour, label in (
        (shifts, shift, "tab:green", "mean shift (reference standard deviations)"),
        (shifts.twinx(), 10 * ratio.clamp(min=1e-6).log10(), "tab:purple", "variance ratio (dB)"),
    ):
        axes.plot(np.linspace(0, 100, len(values)), values.sort().values.cpu(), color=colour)
        axes.set_ylabel(label, color=colour)
        most = 1.1 * max(float(values.abs().max()), 0.1)
        axes.set_ylim(-most, most)  # symmetric: zero is at the same height on both axes
    shifts.axhline(0, color="grey", lw=0.8)
    grey.set_yscale("function", functions=(np.sqrt, np.square))  # shows both peaks and tails
    grey.set_ylim(0)
    for axes, title, x, y in (
        (grey, "Grey levels", "grey level", "pixels per 4 levels (%)"),
        (spectra, "Spectra of the luminance", "radius (cycles per image)", "power"),
        (near, "Nearest reference image", "distance of features", "images (%)"),
    ):
        axes.set(title=title, xlabel=x, ylabel=y)
        axes.grid(alpha=0.25)
        axes.legend(fontsize="small")
    shifts.set(title="Features by dimension", xlabel="dimensions, each line sorted (%)")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def _moments(images: ImageSet) -> tuple[Tensor, Tensor]:
    features = images.features.double()
    return features.mean(0), features.var(0)


def _standardised(*moments: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean shifts and variance ratios of the dimensions in which the reference varies."""
    mean, variance, reference_mean, reference_variance = (m.double() for m in moments)
    varies = reference_variance > 0
    if not varies.any():
        raise UsageError("the reference features do not vary: give at least two different images.")
    shift = (mean - reference_mean) / reference_variance.sqrt()
    return shift[varies], (variance / reference_variance)[varies]


def _quantiles(values: Tensor) -> dict[str, float]:
    points = torch.tensor([0.05, 0.5, 0.95], dtype=values.dtype, device=values.device)
    return dict(zip(("q05", "q50", "q95"), values.quantile(points).tolist(), strict=True))
