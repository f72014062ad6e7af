"""Statistics of a set of images, sufficient for every score that compares two sets."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from sid_lsg.files.replacing import replacing
from sid_lsg.files.sources import resolve
from sid_lsg.messages.errors import UsageError
from sid_lsg.metrics.alignment import Pixels, PixelStatistics
from sid_lsg.metrics.protocol import EvaluationProtocol

NO_PIXELS = Pixels(torch.empty(0), torch.empty(0), 0)


class Statistics(NamedTuple):
    """Feature moments, features and pixel statistics of a set of images.

    Attributes:
        mean: [D] float64.
        covariance: [D, D] float64, unbiased.
        count: Number of images.
        features: [M, D] float32, of all images or the first M.
        pixels: Histograms and spectrum of the prepared images; empty if the protocol has none.
        about: Origin of the images, and the `protocol`'s identity.
    """

    mean: Tensor
    covariance: Tensor
    count: int  # type: ignore[assignment]  # shadows the tuple's method
    features: Tensor
    pixels: Pixels
    about: dict[str, Any]

    def save(self, path: Path) -> None:
        """Write a .safetensors file."""
        tensors = {
            "mean": self.mean,
            "covariance": self.covariance,
            "features": self.features,
            "histogram": self.pixels.histogram,
            "spectrum": self.pixels.spectrum,
        }
        metadata = {"count": str(self.count), "about": json.dumps(self.about)}
        with replacing(path) as temporary:
            save_file({k: v.cpu().contiguous() for k, v in tensors.items()}, temporary, metadata)

    @classmethod
    def load(cls, path: str | Path, option: str = "reference") -> "Statistics":
        """Read a file that `save` wrote.

        Raises:
            UsageError: If the file is missing or contains something else.
        """
        try:
            with safe_open(resolve(str(path)), "pt") as file:
                count = int(file.metadata()["count"])
                about = json.loads(file.metadata()["about"])
                values = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            mean, covariance, features = (
                values[name] for name in ("mean", "covariance", "features")
            )
            wanted = (len(mean), len(mean)), (len(features), len(mean))
            if (covariance.shape, features.shape) != wanted or count < 2:
                raise ValueError(f"shapes {list(mean.shape)} and {list(covariance.shape)}")
            pixels = Pixels(values["histogram"], values["spectrum"], count)
            return cls(mean, covariance, count, features, pixels, about)
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise UsageError(
                f"--{option}: {str(path)!r} contains no reference statistics ({error}). Give a "
                "folder of images, or a .safetensors file that prepare-coco or evaluate wrote."
            ) from error

    def check_protocol(self, protocol: EvaluationProtocol, path: str, option: str) -> None:
        """Reject statistics of another protocol.

        Raises:
            UsageError: If the protocols differ; the message names the first difference.
        """
        own, other = self.about.get("protocol", {}), protocol.identity
        for name in (*other, *own):
            if own.get(name) != other.get(name):
                raise UsageError(
                    f"--{option}: {path!r} was computed with another protocol: its {name} is "
                    f"{own.get(name)!r}, but that of `{protocol.name}` is now {other.get(name)!r}. "
                    "Give the folder of images to compute new statistics."
                )


class Moments(Metric):
    """Mean and covariance of features, accumulated in float64 over batches and processes."""

    full_state_update = False
    total: Tensor
    products: Tensor
    count: Tensor
    features: list[Tensor]

    def __init__(self, dimension: int, keep: bool = True, **kwargs: Any) -> None:
        """Start empty, for features of dimension D; without `keep` the features are not kept."""
        super().__init__(**kwargs)
        self.keep = keep
        for name, shape in (("total", [dimension]), ("products", [dimension] * 2)):
            zeros = torch.zeros(shape, dtype=torch.float64)
            self.add_state(name, zeros, dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")
        if keep:
            self.add_state("features", [], dist_reduce_fx="cat")

    def update(self, features: Tensor) -> None:
        """Add features [B, D]."""
        if self.keep:
            self.features.append(features)
        features = features.double()
        self.total += features.sum(0)
        self.products += features.T @ features
        self.count += len(features)

    def compute(self) -> tuple[Tensor, Tensor, int, Tensor]:
        """Return the mean, unbiased covariance, count and features [N, D], or [0, D]."""
        count = int(self.count)
        mean = self.total / count
        covariance = (self.products - count * torch.outer(mean, mean)) / (count - 1)
        features = dim_zero_cat(self.features) if self.keep else mean.new_empty(0, len(mean))
        return mean, covariance, count, features


class Collector:
    """Accumulate statistics of prepared images over batches and processes."""

    def __init__(self, protocol: EvaluationProtocol) -> None:
        """Start empty, for images of a protocol."""
        self.protocol = protocol
        self.moments = Moments(protocol.network.dimension)
        self.pixels = PixelStatistics(protocol.size) if protocol.pixels else None

    def reset(self, device: torch.device | str) -> None:
        """Clear the statistics and move them and the network to a device."""
        self.protocol.network.to(device)
        self.moments.to(device).reset()
        if self.pixels is not None:
            self.pixels.to(device).reset()

    def update(self, prepared: Tensor) -> Tensor:
        """Add prepared images [B, 3, S, S] uint8; return their features [B, D]."""
        features = self.protocol.embed(prepared)
        self.moments.update(features)
        if self.pixels is not None:
            self.pixels.update(prepared.to(features.device))
        return features

    def compute(self, **about: Any) -> Statistics:
        """Return the statistics of all processes' images; `about` describes their origin."""
        mean, covariance, count, features = self.moments.compute()
        about = {**about, "protocol": self.protocol.identity}
        pixels = NO_PIXELS if self.pixels is None else self.pixels.compute()
        return Statistics(mean.cpu(), covariance.cpu(), count, features, pixels, about)
