"""Images with their prompts to scores: of a sampler, or of a folder; on one process or several."""

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
from sid_lsg.metrics.manifold import kernel_distance, kth_distances, overlap
from sid_lsg.metrics.preferences import Preference
from sid_lsg.metrics.protocol import EvaluationProtocol, clip_protocol
from sid_lsg.metrics.scores import Mean, cosines, frechet_distance
from sid_lsg.metrics.statistics import Collector, Statistics

Sampler = Callable[[Sequence[str], Sequence[int]], Tensor]
"""(prompts, seeds) -> images [B, 3, H, W] in [-1, 1]."""

K_NEAREST = 3


class Scores(NamedTuple):
    """What an evaluation found.

    Attributes:
        values: Scores by plain names (`fid`, `clip_score`, ...).
        statistics: The images' own statistics.
        seconds_per_image: What sampling an image took on this process; NaN for a folder's.
    """

    values: dict[str, float]
    statistics: Statistics
    seconds_per_image: float


class Evaluator:
    """Score images: FID, KID, precision, recall, density, coverage, CLIP score, preferences.

    On several processes each takes its share of the batches, and all learn the scores of the whole.
    No random state is touched.
    """

    def __init__(
        self,
        protocol: EvaluationProtocol,
        clip: CLIPFeatures | None = None,
        clip_prefix: str = "",
        reference: Statistics | None = None,
        preferences: Sequence[Preference] = (),
    ) -> None:
        """Put the scores together.

        Args:
            protocol: How images become the features of FID and its companions.
            clip: The CLIP score's model; none leaves that score out.
            clip_prefix: What comes before a prompt when it is compared with an image.
            reference: What to compare with; none leaves out FID and its companions.
            preferences: Models of human preference.
        """
        self.protocol = protocol
        # The score's images go through CLIP's own preprocessing, where the protocol has another.
        self.clip_chain = protocol if protocol.network is clip or not clip else clip_protocol(clip)
        self.clip = clip
        self.clip_prefix = clip_prefix
        self.reference = reference
        self._radii: Tensor | None = None
        self.preferences = preferences
        self.collector = Collector(protocol)
        self.clip_score = Mean()
        self.means = {preference.name: Mean() for preference in preferences}

    def of_sampler(
        self,
        sampler: Sampler,
        prompts: Sequence[str],
        num_images: int,
        batch_size: int,
        device: torch.device | str,
        progress: str | None = None,
    ) -> Scores:
        """Sample and score; image i is of prompt i modulo their number, with seed i.

        Every process calls the sampler equally often, for a sharded network needs all of them at
        once: where the batches do not divide, some sample once more for nothing. A warning counts
        images that are not finite.

        Args:
            sampler: What to score.
            prompts: Prompts to go through, again and again.
            num_images: How many images.
            batch_size: Images at a time.
            device: Where to compute.
            progress: Name for a progress bar; none by default.
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
                f"{bad} of {num_images} sampled images are not finite; they are scored as 8 bits "
                "show them, where NaN is black."
            )
        return self._compute(seconds / max(sampled, 1))  # a process may have none to sample

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
            paths: The images.
            texts: Their captions, or None.
            batch_size: Images at a time.
            device: Where to compute.
            option: The option that named them, for messages.
            progress: Name for a progress bar; none by default.

        Raises:
            UsageError: If some cannot be read, all of them by name.
        """
        self._reset(device)
        reader = ImageReader(paths)
        for places, images in reader.read(share_of(len(paths), batch_size), progress):
            self._update(images, None if texts is None else [texts[i] for i in places])
        reader.check(option)
        return self._compute(float("nan"))

    def _reset(self, device: torch.device | str) -> None:
        self.collector.reset(device)
        for metric in (self.clip_score, *self.means.values()):
            metric.to(device).reset()
        for network in (self.clip, *self.preferences):
            if network is not None:
                network.to(device)

    @torch.no_grad()
    def _update(self, images: Sequence[Tensor], texts: Sequence[str] | None) -> None:
        features = self.collector.update(self.protocol.prepare(images))
        if texts is None:
            return
        if self.clip is not None:
            if self.clip_chain is not self.protocol:
                features = self.clip_chain.embed(self.clip_chain.prepare(images))
            described = self.clip.texts([self.clip_prefix + text for text in texts])
            self.clip_score.update(cosines(features, described))
        for preference in self.preferences:
            for some, words in _of_one_size(images, texts):
                self.means[preference.name].update(preference.score(some, words))

    def _compute(self, seconds_per_image: float) -> Scores:
        statistics = self.collector.compute()
        values: dict[str, float] = {}
        if self.reference is not None:
            values["fid"] = frechet_distance(statistics, self.reference)
            generated, real = statistics.features, self.reference.features
            real = real.to(generated.device)
            values["kid"] = float(kernel_distance(generated, real))
            if min(len(generated), len(real)) > K_NEAREST:
                if self._radii is None:  # the same at every evaluation
                    self._radii = kth_distances(real, K_NEAREST)
                radii = self._radii.to(generated.device)
                shares = overlap(generated, real, K_NEAREST, reference_radii=radii)._asdict()
                values |= {name: float(share) for name, share in shares.items()}
        if int(self.clip_score.count):
            values["clip_score"] = float(self.clip_score.compute())
        values |= {name: float(mean.compute()) for name, mean in self.means.items()}
        # Leave the device to the training.
        self._reset("cpu")
        return Scores(values, statistics, seconds_per_image)


def _of_one_size(
    images: Sequence[Tensor], texts: Sequence[str]
) -> list[tuple[Tensor, Sequence[str]]]:
    """Stack images if they are of one size; else take them one by one."""
    if len({image.shape for image in images}) == 1:
        return [(torch.stack(list(images)), texts)]
    return [(image[None], [text]) for image, text in zip(images, texts, strict=True)]
