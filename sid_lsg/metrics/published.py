"""The table of published scores: the network, preprocessing and formula of each.

`evaluate --scores` and `metrics.scores` choose among them. A score's name ends with its protocol
and the number of images (`cmmd_clip336_30k`); `own_` marks a network of other sizes than the
published one's.
"""

import hashlib
import html
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from sid_lsg.messages.errors import UsageError
from sid_lsg.metrics.aesthetic import aesthetic, load_aesthetic
from sid_lsg.metrics.features import OPENAI, CLIPFeatures, load_dinov2
from sid_lsg.metrics.image_reward import ImageReward
from sid_lsg.metrics.inception import InceptionFeatures
from sid_lsg.metrics.manifold import gaussian_distance
from sid_lsg.metrics.protocol import EvaluationProtocol
from sid_lsg.metrics.resize import (
    bicubic,
    bicubic_float,
    centre,
    cropped_bicubic,
    fitted_bicubic,
    rounded_bicubic,
    stretched_bicubic,
)
from sid_lsg.metrics.scores import Mean, Spread, cosines, frechet_distance
from sid_lsg.metrics.statistics import NO_PIXELS, Moments, Statistics

Asked = Sequence[str] | Mapping[str, str | None]
"""Names of scores, or the source of each one's network."""

TEACHER = "fid_teacher"


@dataclass(frozen=True)
class Published:
    """How a score is computed.

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


_TEACHER = Published("", None, load_dinov2, (0, 0), bicubic, "", frechet_distance, captions=False)


class Loaded:
    """A published score with its network.

    Attributes:
        name: Its name in the table.
        about: Its row of the table.
        chain: Its preprocessing and network; scores may share one.
        source: What was asked for: the network, or the teacher's images.
        reference: What it compares with.
    """

    def __init__(
        self, name: str, about: Published, chain: EvaluationProtocol, source: str | None
    ) -> None:
        self.name, self.about, self.chain, self.source = name, about, chain, source
        self.reference: Statistics | None = None
        self._metric: Any  # Moments, Mean or Spread
        if about.compare:
            self._metric = Moments(chain.network.dimension, about.keeps)
        else:
            self._metric = Mean() if about.rate else Spread()

    def reset(self, device: torch.device | str) -> None:
        """Forget all images, and move to a device."""
        self.chain.network.to(device)
        self._metric.to(device).reset()

    def update(
        self, images: Sequence[Tensor], texts: Sequence[str] | None, seen: dict[int, Tensor]
    ) -> None:
        """Add images with their texts.

        Args:
            images: uint8 images [3, H, W], of one size or several.
            texts: Their texts, if they are known; scores that need them ignore images without.
            seen: Features of these images by the identity of their chain; adds to it.
        """
        if texts is None and self.about.captions:
            return
        if self.about.rate:
            network, prepared = self.chain.network, self.chain.prepare(images)
            self._metric.update(self.about.rate(network, prepared, texts or ()))
            return
        if id(self.chain) not in seen:
            seen[id(self.chain)] = self.chain.embed(self.chain.prepare(images))
        features = seen[id(self.chain)]
        self._metric.update(*([features] if self.about.compare else [features, texts]))

    def compute(self) -> float | None:
        """Return the score of all processes' images; None if it cannot be computed for them."""
        metric = self._metric
        if self.about.compare is None:
            value = float(metric.compute()) if metric.update_called else math.nan
            return None if math.isnan(value) else value
        assert self.reference is not None
        mean, covariance, count, features = metric.compute()
        own = Statistics(mean.cpu(), covariance.cpu(), count, features, NO_PIXELS, {})
        return self.about.compare(own, self.reference)

    @property
    def values(self) -> list[Tensor]:
        """The ratings of this process's images, in order; none for other scores."""
        return self._metric.values if isinstance(self._metric, Mean) else []

    @property
    def identity(self) -> dict[str, Any]:
        """Properties that are equal for comparable scores."""
        if self.reference is None:
            return self.chain.identity
        with_which = hashlib.sha256(self.reference.mean.numpy().tobytes()).hexdigest()
        return {**self.chain.identity, "reference": self.reference.count, "mean": with_which}


def named(asked: Asked | None, option: str) -> dict[str, str | None]:
    """Return the source that was asked for each score; None means the table's.

    Raises:
        UsageError: If there is no such score, or `fid_teacher` has no source.
    """
    sources = dict(asked) if isinstance(asked, Mapping) else dict.fromkeys(asked or ())
    for name in sources:
        if name not in (*SCORES, TEACHER):
            known = ", ".join((*SCORES, TEACHER))
            raise UsageError(f"--{option}: there is no score {name!r}. Choose among {known}.")
    if TEACHER in sources and not sources[TEACHER]:
        raise UsageError(
            f"--{option}: {TEACHER} needs the teacher's images of the same prompts. Give their "
            f"folder, or a file of statistics: {{{TEACHER}: FOLDER}}."
        )
    return sources


def check_inputs(asked: Asked | None, captions: Sequence[str] | None, option: str) -> None:
    """Check that the images have the captions that scores need.

    Raises:
        UsageError: If they have none, or no two images have the same for `diversity`.
    """
    for name in named(asked, option):
        if captions is None and name != TEACHER and SCORES[name].captions:
            raise UsageError(
                f"--{option}: {name} needs captions, which --images has not. Give --captions."
            )
        if name == "diversity" and captions and len({*captions}) == len(captions):
            raise UsageError(
                f"--{option}: diversity compares images of one prompt, but all {len(captions)} "
                "images have different ones. Give fewer prompts or more images."
            )


def load_scores(
    asked: Asked | None, protocol: EvaluationProtocol, option: str, inception: str | None = None
) -> list[Loaded]:
    """Load the networks of scores; scores with the same network and preprocessing share it.

    Args:
        asked: The scores.
        protocol: The evaluation's protocol; `fid_teacher` uses it.
        option: Name of the option that asked for them, for error messages.
        inception: Inception's TorchScript file; None downloads it.

    Raises:
        UsageError: If there is no such score, or a network cannot be loaded.
    """
    networks: dict[Any, Any] = {}
    if isinstance(protocol.network, InceptionFeatures):
        networks[InceptionFeatures.from_file, inception] = protocol.network
    chains: dict[Any, EvaluationProtocol] = {}
    loaded = []
    for name, asked_source in named(asked, option).items():
        if name == TEACHER:
            loaded.append(Loaded(name, _TEACHER, protocol, asked_source))
            continue
        about = SCORES[name]
        source = asked_source or about.source or inception
        key = (about.load, source)
        if key not in networks:
            networks[key] = about.load(source, f"{option}.{name}")
        network = networks[key]
        sizes = (network.input_size, network.dimension)
        label = about.protocol
        if sizes != about.sizes:
            label = f"own_{label}"
            rank_zero_warn(
                f"--{option}: the network of {name} has inputs of {sizes[0]} pixels and {sizes[1]} "
                f"features, the published one {about.sizes[0]} and {about.sizes[1]}. Its scores "
                f"are called {name}_{label}, and compare with no published ones."
            )
        chain = (key, about.prepare, label)
        if chain not in chains:
            chains[chain] = EvaluationProtocol(
                label, network, network.input_size, about.prepare, about.chain, 0, pixels=False
            )
        loaded.append(Loaded(name, about, chains[chain], source))
    return loaded
