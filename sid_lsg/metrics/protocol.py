"""Evaluation protocols: everything except the images that an FID depends on, under one name.

Two evaluations of one published checkpoint gave FIDs of 8.15 and 14.3 because resizing and
networks differed. So a score's name contains the protocol and the number of images
(`fid_clean256_30k`), and reference statistics of another protocol are rejected.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from sid_lsg.messages.errors import UsageError
from sid_lsg.metrics.features import CLIPFeatures
from sid_lsg.metrics.inception import InceptionFeatures
from sid_lsg.metrics.resize import bicubic, fast_bicubic, lanczos
from sid_lsg.options.choices import ProtocolName


class FeatureNetwork(Protocol):
    """A frozen network that computes features of images.

    Attributes:
        input_size: Side of the images that it sees.
        dimension: Number of features.
    """

    input_size: int
    dimension: int

    @property
    def identity(self) -> dict[str, Any]:
        """Properties that are equal for interchangeable networks."""

    def embed(self, images: Tensor) -> Tensor:
        """Embed prepared images [B, 3, S, S], uint8 or float32 in 0..255: [B, D] float32."""

    def to(self, device: Any) -> nn.Module:
        """Move to a device."""


@dataclass(frozen=True)
class EvaluationProtocol:
    """Preprocessing and network that turn images into features.

    Attributes:
        name: Part of the names of its scores.
        network: Computes the features.
        size: Side of a prepared image.
        resize: Maps uint8 images [B, 3, H, W] of any size to prepared ones [B, 3, size, size].
        chain: Description of the preprocessing, stored in reports and reference statistics.
        num_images: Default number of images for the FID.
        pixels: Whether statistics include histograms and spectra of the prepared images.
    """

    name: str
    network: FeatureNetwork
    size: int
    resize: Callable[[Tensor, int], Tensor]
    chain: str
    num_images: int
    pixels: bool = True

    def prepare(self, images: Sequence[Tensor]) -> Tensor:
        """Crop and resize uint8 images [3, H, W], of one size or several: [B, 3, size, size]."""
        if len({image.shape for image in images}) == 1:
            return self.resize(torch.stack(list(images)), self.size)
        return torch.cat([self.resize(image[None], self.size) for image in images])

    def embed(self, prepared: Tensor) -> Tensor:
        """Compute the features [B, D] float32 of prepared images."""
        return self.network.embed(prepared)

    @property
    def identity(self) -> dict[str, Any]:
        """Properties that must be equal for two sets of statistics to be comparable."""
        return {"protocol": self.name, "chain": self.chain, **self.network.identity}

    def key(self, score: str, num_images: int) -> str:
        """Name a score: `fid` of 30,000 images is `fid_clean256_30k`."""
        thousands, rest = divmod(num_images, 1000)
        return f"{score}_{self.name}_{num_images if rest or not thousands else f'{thousands}k'}"


def clean256(inception: InceptionFeatures) -> EvaluationProtocol:
    """Return the paper's protocol: LANCZOS to 256, bicubic to 299 in float, Inception."""
    return EvaluationProtocol(
        "clean256",
        inception,
        256,
        lanczos,
        "centre square -> Pillow LANCZOS to 256, uint8 -> Pillow bicubic to 299 per channel, "
        "float32 -> pooled features",
        30_000,
    )


def clip_protocol(clip: CLIPFeatures, fast: bool = False) -> EvaluationProtocol:
    """Return the protocol `clip` (CLIP image embeddings), or `fast` (fast resizing, few images)."""
    side = clip.input_size
    if fast:
        chain = f"centre square -> torch antialiased bicubic to {side}, uint8 -> image embeddings"
        return EvaluationProtocol("fast", clip, side, fast_bicubic, chain, 1000)
    chain = f"Pillow bicubic to {side}, centre square, uint8 -> image embeddings"
    return EvaluationProtocol("clip", clip, side, bicubic, chain, 10_000)


def load_protocol(
    name: ProtocolName,
    clip: CLIPFeatures | None,
    inception: str | None = None,
    option: str = "inception",
) -> EvaluationProtocol:
    """Return a protocol by name; load Inception if it needs it.

    Args:
        name: `clean256`, `clip` or `fast`.
        clip: The CLIP model, for `clip` and `fast`.
        inception: Inception's TorchScript file, for `clean256`; None downloads it.
        option: Name of the option for Inception, for error messages; replacing
            `inception` by `clip` gives the option for CLIP.

    Raises:
        UsageError: If the network is missing.
    """
    if name == "clean256":
        return clean256(InceptionFeatures.from_file(inception, option))
    if clip is None:
        raise UsageError(
            f"--{option.replace('inception', 'clip')} is missing: the protocol `{name}` uses "
            "features of a CLIP model. Give one."
        )
    return clip_protocol(clip, fast=name == "fast")
