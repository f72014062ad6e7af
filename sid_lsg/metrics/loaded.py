"""Load published scores, and compute them for the images of an evaluation."""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from sid_lsg.files.sources import resolve
from sid_lsg.images.folder import CAPTIONS
from sid_lsg.messages.errors import UsageError
from sid_lsg.metrics.inception import InceptionFeatures
from sid_lsg.metrics.protocol import EvaluationProtocol
from sid_lsg.metrics.published import SCORES, Published
from sid_lsg.metrics.resize import bicubic, centre
from sid_lsg.metrics.scores import Mean, Spread, frechet_distance
from sid_lsg.metrics.statistics import NO_PIXELS, Moments, Statistics

Asked = Sequence[str] | Mapping[str, str | None]
"""Names of scores, or the source of each one's network."""

TEACHER = "fid_teacher"
# It has the evaluation's own protocol and network; its source is a reference.
_TEACHER = Published(
    "", None, InceptionFeatures.from_file, (0, 0), bicubic, "", frechet_distance, captions=False
)


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
        side = min(size for image in images for size in image.shape[1:])
        if self.about.prepare is centre and side < self.chain.size:
            rank_zero_warn(
                f"{self.name} is of the centres of images, but some are smaller than "
                f"{self.chain.size} pixels and are resized whole: it says nothing of their details."
            )
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
        UsageError: If they have none, no two images have the same for `diversity`, or the teacher's
            images are of other prompts.
    """
    for name, source in named(asked, option).items():
        if captions is None and name != TEACHER and SCORES[name].captions:
            raise UsageError(
                f"--{option}: {name} needs captions, which --images has not. Give --captions."
            )
        if name == "diversity" and captions and len({*captions}) == len(captions):
            raise UsageError(
                f"--{option}: diversity compares images of one prompt, but all {len(captions)} "
                "images have different ones. Give fewer prompts or more images."
            )
        if name == TEACHER and captions and source:
            _check_prompts(Path(resolve(source)) / CAPTIONS, captions, f"{option}.{name}")


def _check_prompts(path: Path, captions: Sequence[str], option: str) -> None:
    """Reject images whose captions, if a command wrote them, are of other prompts."""
    try:
        rows = [json.loads(row) for row in path.read_text(encoding="utf-8").split("\n") if row]
        others = Counter(captions) - Counter(row["text"] for row in rows)
    except (OSError, ValueError, KeyError, TypeError):
        return  # images of another origin
    if others:
        raise UsageError(
            f"--{option}: the images in {str(path.parent)!r} are not of the same prompts: "
            f"{others.total()} of {len(captions)} are missing, such as "
            f"{next(iter(others))!r:.60}. Sample the teacher with these prompts."
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
