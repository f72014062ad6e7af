"""Prompts and a sampler to scores."""

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric
from tqdm import tqdm

from sid_lsg.errors import UsageError
from sid_lsg.metrics.features import CLIPFeatures
from sid_lsg.metrics.scores import CLIPScore, load_reference

Sampler = Callable[[Sequence[str], Sequence[int]], Tensor]
"""(prompts, seeds) -> images [B, 3, H, W] in [-1, 1]."""


class Scores(NamedTuple):
    """Scores of one sampler, and what an image cost it."""

    fid: float | None
    clip: float
    seconds_per_image: float


class Evaluator:
    """FID and CLIP score of samplers over the same prompts and seeds.

    Image i is of prompt i modulo their number, with seed i: nothing depends on the batch size, and
    no random state is touched.
    """

    def __init__(
        self,
        clip: str,
        reference: str | None,
        num_images: int,
        batch_size: int,
        option: str = "metrics",
    ) -> None:
        """Load the feature network and the reference.

        Args:
            clip: A CLIP model for features and score.
            reference: File of the reference images' feature statistics; without it FID is left out.
            num_images: How many images to score.
            batch_size: Images at a time.
            option: The prefix of these options, for messages.
        """
        self.features = CLIPFeatures.from_pretrained(clip, f"{option}.clip")
        self.fid = load_reference(reference, f"{option}.reference") if reference else None
        if self.fid is not None and len(self.fid.real_features_sum) != self.features.dimension:
            raise UsageError(
                f"--{option}.reference: {reference!r} holds {len(self.fid.real_features_sum)} "
                f"features and {clip!r} has {self.features.dimension}. Give statistics that were "
                "computed with that model."
            )
        self.clip_score = CLIPScore(sync_on_compute=False)
        self.num_images = num_images
        self.batch_size = batch_size

    @torch.no_grad()
    def evaluate(
        self,
        sampler: Sampler,
        prompts: Sequence[str],
        device: torch.device | str,
        progress: str | None = None,
    ) -> Scores:
        """Sample and score.

        Args:
            sampler: What to score.
            prompts: Prompts to go through, again and again.
            device: Where to compute features.
            progress: Name for a progress bar; none by default.

        Returns:
            The scores; the seconds are those of sampling alone.
        """
        self.features.to(device)
        for metric in self.metrics:
            metric.to(device).reset()
        seconds = 0.0
        starts = range(0, self.num_images, self.batch_size)
        for start in tqdm(starts, progress, disable=progress is None, leave=False):
            seeds = range(start, min(start + self.batch_size, self.num_images))
            texts = [prompts[seed % len(prompts)] for seed in seeds]
            before = time.perf_counter()
            images = sampler(texts, seeds)
            if images.is_cuda:
                torch.cuda.synchronize(images.device)
            seconds += time.perf_counter() - before
            embeddings = self.features.images(images)
            self.clip_score.update(embeddings, self.features.texts(texts))
            if self.fid is not None:
                self.fid.update(embeddings)
        fid = None if self.fid is None else float(self.fid.compute())
        clip = float(self.clip_score.compute())
        for part in (self.features, *self.metrics):
            part.cpu()  # leave the device to the training
        return Scores(fid, clip, seconds / self.num_images)

    @property
    def metrics(self) -> list[Metric]:
        """The metrics in use."""
        return [self.clip_score] if self.fid is None else [self.clip_score, self.fid]
