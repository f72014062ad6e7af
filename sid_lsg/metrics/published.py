"""The table of published scores: the network, preprocessing and formula of each.

`evaluate --scores` and `metrics.scores` choose among them. A score's name ends with its protocol
and the number of images (`cmmd_clip336_30k`); `own_` marks a network of other sizes than the
published one's.
"""

import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from sid_lsg.metrics.aesthetic import aesthetic, load_aesthetic
from sid_lsg.metrics.features import OPENAI, CLIPFeatures, load_dinov2
from sid_lsg.metrics.image_reward import ImageReward
from sid_lsg.metrics.inception import InceptionFeatures
from sid_lsg.metrics.manifold import gaussian_distance
from sid_lsg.metrics.resize import (
    bicubic,
    bicubic_float,
    centre,
    cropped_bicubic,
    fitted_bicubic,
    rounded_bicubic,
    stretched_bicubic,
)
from sid_lsg.metrics.scores import cosines, frechet_distance
from sid_lsg.metrics.statistics import Statistics


@dataclass(frozen=True)
class Published:
    """The network, preprocessing and formula of a score.

    Attributes:
        protocol: The protocol's part of the score's name.
        source: Its network on the Hub; None for Inception.
        load: Loads the network, given its source and the option that gave it.
        sizes: The published network's input size and number of features.
        prepare: Maps uint8 images [B, 3, H, W] to [B, 3, S, S], uint8 or float32 in 0..255.
        chain: Description of the preprocessing.
        compare: Compares generated with reference images.
        rate: Rates prepared images for their texts, given the network; the score is the mean.
        keeps: Whether `compare` needs all features. Otherwise memory is constant.
        captions: Whether the score needs captions.
    """

    protocol: str
    source: str | None
    load: Callable[[Any, str], Any]
    sizes: tuple[int, int]
    prepare: Callable[[Tensor, int], Tensor]
    chain: str
    compare: Callable[[Statistics, Statistics], float] | None = None
    rate: Callable[[Any, Tensor, Sequence[str]], Tensor] | None = None
    keeps: bool = False
    captions: bool = True


def cmmd(generated: Statistics, reference: Statistics) -> float:
    """Compute CMMD (Jayasumana et al., arXiv 2401.09603): 1000 MMD^2, Gaussian kernel, sigma 10."""
    x, y = (F.normalize(found.features.double(), dim=1) for found in (generated, reference))
    return 1000 * float(gaussian_distance(x, y.to(x.device), sigma=10))


def _clip(source: str, option: str) -> CLIPFeatures:
    return CLIPFeatures.from_pretrained(source, option, OPENAI)


def _pickscore(clip: CLIPFeatures, images: Tensor, texts: Sequence[str]) -> Tensor:
    return clip.model.logit_scale.exp() * cosines(clip.embed(images), clip.texts(texts))


def _hpsv2(clip: CLIPFeatures, images: Tensor, texts: Sequence[str]) -> Tensor:
    """Return cosines, as `hpsv2.score` does; the benchmark's tables show 100 times that."""
    plain = [html.unescape(html.unescape(text)) for text in texts]  # as OpenCLIP, without ftfy
    return cosines(clip.embed(images), clip.texts(plain))


_DINOV2: dict[str, Any] = {
    "protocol": "vitl14",
    "source": "facebook/dinov2-large@47b73eefe95e8d44ec3623f8890bd894b6ea2d6c",
    "load": load_dinov2,
    "sizes": (224, 1024),
    "prepare": stretched_bicubic,
    "chain": "Pillow bicubic to 224 x 224, uint8 -> class token",
}
_INCEPTION: dict[str, Any] = {
    "source": None,
    "load": InceptionFeatures.from_file,
    "sizes": (299, 2048),
    "compare": frechet_distance,
    "captions": False,
}
SCORES = {
    "cmmd": Published(
        "clip336",
        "openai/clip-vit-large-patch14-336@ce19dc912ca5cd21c8a653c79e251e808ccabcd1",
        _clip,
        (336, 768),
        cropped_bicubic,
        "centre square -> Pillow bicubic to 336, uint8 -> unit embeddings",
        compare=cmmd,
        keeps=True,
        captions=False,
    ),
    "fd_dinov2": Published(**_DINOV2, compare=frechet_distance, captions=False),
    "fid_clean": Published(
        "bicubic299",
        **_INCEPTION,
        prepare=bicubic_float,
        chain="Pillow bicubic to 299 x 299 per channel, float32 -> pooled features",
    ),
    "fid_patch": Published(
        "crop299",
        **_INCEPTION,
        prepare=centre,
        chain="centre 299 x 299, smaller images resized -> pooled features",
    ),
    "diversity": Published(**_DINOV2),
    "pickscore": Published(
        "v1",
        "yuvalkirstain/PickScore_v1@a4e4367c6dfa7288a00c550414478f865b875800",
        _clip,
        (224, 1024),
        bicubic,
        "Pillow bicubic to 224, centre square, uint8 -> logit of image and text",
        rate=_pickscore,
    ),
    "hpsv2": Published(
        "vith14",
        "adams-story/HPSv2-hf",
        _clip,
        (224, 1024),
        fitted_bicubic,
        "longer side to 224 by torch's antialiased bicubic, black bars, float32 -> cosine",
        rate=_hpsv2,
    ),
    "aesthetic": Published(
        "v2",
        "shunk031/aesthetics-predictor-v2-sac-logos-ava1-l14-linearMSE",
        load_aesthetic,
        (224, 768),
        rounded_bicubic,
        "Pillow bicubic to 224, centre square, uint8 -> head on the unit embedding",
        rate=aesthetic,
        captions=False,
    ),
    "image_reward": Published(
        "v1",
        "THUDM/ImageReward@5736be03b2652728fb87788c9797b0570450ab72",
        ImageReward.from_pretrained,
        (224, 768),
        rounded_bicubic,
        "Pillow bicubic to 224, centre square, uint8 -> standardized reward",
        rate=ImageReward.score,
    ),
}
