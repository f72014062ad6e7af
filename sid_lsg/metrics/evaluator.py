"""Score the images of a sampler or of a folder, on one process or several."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from tqdm import tqdm

from sid_lsg.distributed.processes import batches_of, gather, process, share_of
from sid_lsg.images.folder import ImageReader
from sid_lsg.images.pixels import to_uint8
from sid_lsg.metrics.features import CLIPFeatures
from sid_lsg.metrics.loaded import Loaded
from sid_lsg.metrics.manifold import kernel_distance, kth_distances, overlap
from sid_lsg.metrics.protocol import EvaluationProtocol, clip_protocol
from sid_lsg.metrics.scores import Mean, cosines, frechet_distance
from sid_lsg.metrics.statistics import Collector, Statistics
from sid_lsg.networks.precision import tf32

Sampler = Callable[[Sequence[str], Sequence[int]], Tensor]
"""(prompts, seeds) -> images [B, 3, H, W] in [-1, 1]."""

K_NEAREST = 3


class Scores(NamedTuple):
    """Results of an evaluation.

    Attributes:
        values: Scores by name, without protocol (`fid`, `clip_score`, ...).
        statistics: Statistics of the scored images.
        seconds_per_image: Sampling time per image on this process; NaN for a folder.
        each: The scores that every image has, in the order of the images.
    """

    values: dict[str, float]
    statistics: Statistics
    seconds_per_image: float
    each: dict[str, list[float]]


class Evaluator:
    """Score images: FID, KID, precision, recall, density, coverage, CLIP and published scores.

    Each process scores its share of the batches; all return the scores of the whole set. The
    random state does not change.
    """

    def __init__(
        self,
        protocol: EvaluationProtocol,
        clip: CLIPFeatures | None = None,
        clip_prefix: str = "",
        reference: Statistics | None = None,
        scores: Sequence[Loaded] = (),
    ) -> None:
        """Choose the scores to compute.

        Args:
            protocol: Defines the features for FID, KID, precision, recall, density and coverage.
            clip: Model for the CLIP score; None omits this score.
            clip_prefix: Text put before each prompt for the CLIP score.
            reference: Statistics to compare with; None omits FID and the other comparisons.
            scores: Published scores, with what they compare with.
        """
        self.protocol = protocol
        # The CLIP score uses CLIP's own preprocessing if the protocol uses another network.
        self.clip_chain = protocol if protocol.network is clip or not clip else clip_protocol(clip)
        self.clip = clip
        self.clip_prefix = clip_prefix
        self.reference = reference
        self._radii: Tensor | None = None
        self.scores = scores
        self.collector = Collector(protocol)
        self.clip_score = Mean()
        self._chains = {score.name: score.chain for score in scores}

    def key(self, score: str, num_images: int) -> str:
        """Name a score with its own protocol: `fid` of 30,000 images is `fid_clean256_30k`."""
        return self._chains.get(score, self.protocol).key(score, num_images)

    def of_sampler(
        self,
        sampler: Sampler,
        prompts: Sequence[str],
        num_images: int,
        batch_size: int,
        device: torch.device | str,
        progress: str | None = None,
    ) -> Scores:
        """Sample and score images; image i uses seed i and prompt i modulo the number of prompts.

        All processes call the sampler equally often, because a sharded network needs all of them
        at once. If the batches do not divide evenly, some processes sample one more batch and
        discard it. Warns if images are not finite.

        Args:
            sampler: The sampler to score.
            prompts: Prompts, repeated as often as needed.
            num_images: Number of images.
            batch_size: Images per batch.
            device: Device to compute on.
            progress: Label of a progress bar; None shows none.
        """
        self._reset(device)
        seconds, sampled, bad = 0.0, 0, 0
        batches = batches_of(num_images, batch_size)
        rank, world = process()
        for turn in tqdm(
            range(0, len(batches), world), progress, disable=progress is None, leave=False
        ):
            idle = turn + rank >= len(batches)
            seeds = batches[0 if idle else turn + rank]
            texts = [prompts[seed % len(prompts)] for seed in seeds]
            before = time.perf_counter()
            made = sampler(texts, seeds)
            images = to_uint8(made)
            if images.is_cuda:
                torch.cuda.synchronize(images.device)
            if not idle:
                seconds += time.perf_counter() - before
                sampled += len(images)
                bad += int((~made.isfinite().flatten(1).all(1)).sum())
                self._update(list(images), texts)
        if bad := sum(gather([bad])):
            rank_zero_warn(
                f"{bad} of {num_images} sampled images are not finite. They are scored after "
                "conversion to 8 bits, which turns NaN into black."
            )
        return self._compute(seconds / max(sampled, 1), batches)  # it may have sampled none

    def of_folder(
        self,
        paths: Sequence[Path],
        texts: Sequence[str] | None,
        batch_size: int,
        device: torch.device | str,
        option: str,
        progress: str | None = None,
    ) -> Scores:
        """Score image files.

        Args:
            paths: The image files.
            texts: Their captions; None omits the scores that need captions.
            batch_size: Images per batch.
            device: Device to compute on.
            option: Name of the option that gave the images, for error messages.
            progress: Label of a progress bar; None shows none.

        Raises:
            UsageError: If some cannot be read (the message names them).
        """
        self._reset(device)
        reader = ImageReader(paths)
        for places, images in reader.read(share_of(len(paths), batch_size), progress):
            self._update(images, None if texts is None else [texts[i] for i in places])
        reader.check(option)
        return self._compute(float("nan"), batches_of(len(paths), batch_size))

    def _reset(self, device: torch.device | str) -> None:
        self.collector.reset(device)
        self.clip_score.to(device).reset()
        if self.clip is not None:
            self.clip.to(device)
        for score in self.scores:
            score.reset(device)

    @torch.no_grad()
    @tf32(False)  # as the reference's features
    def _update(self, images: Sequence[Tensor], texts: Sequence[str] | None) -> None:
        with torch.autocast(self.collector.moments.device.type, enabled=False):
            features = self.collector.update(self.protocol.prepare(images))
            seen = {id(self.protocol): features}
            for score in self.scores:
                score.update(images, texts, seen)
            if texts is None or self.clip is None:
                return
            if self.clip_chain is not self.protocol:
                features = self.clip_chain.embed(self.clip_chain.prepare(images))
            described = self.clip.texts([self.clip_prefix + text for text in texts])
            self.clip_score.update(cosines(features, described))

    def _compute(self, seconds_per_image: float, batches: Sequence[range]) -> Scores:
        statistics = self.collector.compute()
        values: dict[str, float] = {}
        if self.reference is not None:
            values["fid"] = frechet_distance(statistics, self.reference)
            generated, real = statistics.features, self.reference.features
            real = real.to(generated.device)
            values["kid"] = float(kernel_distance(generated, real))
            if min(len(generated), len(real)) > K_NEAREST:
                if self._radii is None:  # the reference does not change
                    self._radii = kth_distances(real, K_NEAREST)
                radii = self._radii.to(generated.device)
                shares = overlap(generated, real, K_NEAREST, reference_radii=radii)._asdict()
                values |= {name: float(share) for name, share in shares.items()}
        if int(self.clip_score.count):
            values["clip_score"] = float(self.clip_score.compute())
        for score in self.scores:
            if (value := score.compute()) is not None:
                values[score.name] = value
        rated = {"clip_score": self.clip_score.values} | {s.name: s.values for s in self.scores}
        each = {name: _in_order(found, batches) for name, found in rated.items()}
        # Free the device memory for training.
        self._reset("cpu")
        return Scores(
            values,
            statistics,
            seconds_per_image,
            {name: kept for name, kept in each.items() if kept},
        )


def _in_order(values: Sequence[Tensor], batches: Sequence[range]) -> list[float]:
    """Return the values of all processes, which share the batches, in the order of the images."""
    found = gather([value for some in values for value in some.tolist()])
    world = process()[1]
    places = [i for rank in range(world) for batch in batches[rank::world] for i in batch]
    return [value for _, value in sorted(zip(places, found, strict=True))] if found else []
