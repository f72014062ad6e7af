"""Protocols: everything that a FID depends on beside the images, under one name.

Re-runs of one published checkpoint gave FIDs of 8.15 and 14.3, because resizing and networks
differed. Scores carry their protocol and image count in their name, `fid_clean256_30k`, and
reference statistics of one protocol are refused by another.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from sid_lsg.messages.errors import UsageError
from sid_lsg.metrics.features import CLIPFeatures
from sid_lsg.metrics.inception import InceptionFeatures
from sid_lsg.metrics.resize import bicubic, fast_bicubic, lanczos

ProtocolName = Literal["clean256", "clip", "fast"]


class FeatureNetwork(Protocol):
    """A frozen network that describes images by numbers."""

    dimension: int

    @property
    def identity(self) -> dict[str, Any]:
        """What makes two such networks the same."""

    def embed(self, images: Tensor) -> Tensor:
        """Embed prepared uint8 images [B, 3, S, S]: [B, D] float32."""

    def to(self, device: Any) -> nn.Module:
        """Move to a device."""


@dataclass(frozen=True)
class EvaluationProtocol:
    """How images become features.

    Attributes:
        name: What scores are named after.
        network: What makes the features.
        size: The side of a prepared image.
        resize: uint8 images [B, 3, H, W] of any size to prepared ones [B, 3, size, size].
        chain: The same in words, for reports and for the comparison with stored statistics.
        num_images: How many images make its FID, unless the user says otherwise.
    """

    name: str
    network: FeatureNetwork
    size: int
    resize: Callable[[Tensor, int], Tensor]
    chain: str
    num_images: int

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
        """What two sets of statistics must share to be compared."""
        return {"protocol": self.name, "chain": self.chain, **self.network.identity}

    def key(self, score: str, num_images: int) -> str:
        """Name a score: `fid` of 30,000 images is `fid_clean256_30k`."""
        thousands, rest = divmod(num_images, 1000)
        return f"{score}_{self.name}_{num_images if rest or not thousands else f'{thousands}k'}"


def clean256(inception: InceptionFeatures) -> EvaluationProtocol:
    """Make the paper's protocol: LANCZOS to 256, bicubic to 299 in float, Inception."""
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
    """Make the protocol of a CLIP model's image embeddings: exact, or fast and of few images."""
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
    """Make a protocol from its name, loading Inception where it is needed.

    Args:
        name: `clean256`, `clip` or `fast`.
        clip: The CLIP model of the latter two.
        inception: TorchScript file for the first.
        option: The option that named it, for messages; the model's stands beside it.

    Raises:
        UsageError: If the network is missing.
    """
    if name == "clean256":
        return clean256(InceptionFeatures.from_file(inception, option))
    if clip is None:
        raise UsageError(
            f"--{option.replace('inception', 'clip')} is missing: the protocol `{name}` is made of "
            "a CLIP model's features. Name one."
        )
    return clip_protocol(clip, fast=name == "fast")
