"""FID against stored reference statistics, and the CLIP score, as torchmetrics accumulate them."""

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.image.fid import FrechetInceptionDistance

from sid_lsg.errors import UsageError
from sid_lsg.resources import resolve


class ReferenceFID(FrechetInceptionDistance):
    """Frechet distance between features and the reference's stored mean and covariance.

        |mu - mu_r|^2 + tr(S + S_r - 2 (S S_r)^(1/2))        (Heusel et al., 2017), in float64

    `update` takes features [B, D], not images: whoever extracts them decides how.
    """

    def __init__(self, mean: Tensor, covariance: Tensor, count: int, **kwargs: Any) -> None:
        """Take the reference: mean [D] and unbiased covariance [D, D] float64 of `count` images."""
        features = nn.Identity()
        features.num_features = len(mean)  # type: ignore[assignment]
        super().__init__(feature=features, reset_real_features=False, **kwargs)
        self.orig_dtype = torch.float64  # of the result
        mean, covariance = mean.double(), covariance.double()
        # The sums from which torchmetrics would recover this mean and covariance.
        self.real_features_sum = mean * count
        self.real_features_cov_sum = covariance * (count - 1) + count * torch.outer(mean, mean)
        self.real_features_num_samples = torch.tensor(count)

    def update(self, features: Tensor) -> None:
        """Add generated images' features [B, D]."""
        features = features.double()
        self.fake_features_sum += features.sum(0)
        self.fake_features_cov_sum += features.T @ features
        self.fake_features_num_samples += len(features)


class CLIPScore(Metric):
    """Mean cosine between the embeddings of images and of their prompts, in [-1, 1]."""

    full_state_update = False
    higher_is_better = True
    total: Tensor
    count: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, images: Tensor, texts: Tensor) -> None:
        """Add pairs of embeddings [B, D]."""
        self.total += F.cosine_similarity(images.double(), texts.double()).sum()
        self.count += len(images)

    def compute(self) -> Tensor:
        """Return the mean cosine."""
        return self.total / self.count


def save_reference(path: Path, features: Tensor, about: dict[str, Any]) -> None:
    """Store the mean and unbiased covariance (float64) of reference features [N, D]."""
    features = features.double()
    tensors = {"mean": features.mean(0), "covariance": features.T.cov()}
    metadata = {"count": str(len(features)), "about": json.dumps(about)}
    save_file(tensors, path, metadata)


def load_reference(path: str, option: str = "reference") -> ReferenceFID:
    """Load a reference that `save_reference` wrote.

    Raises:
        UsageError: If the file is missing or holds something else.
    """
    try:
        with safe_open(resolve(path), "pt") as file:
            count = int(file.metadata()["count"])
            mean, covariance = file.get_tensor("mean"), file.get_tensor("covariance")
            if covariance.shape != (*mean.shape, *mean.shape) or mean.dim() != 1 or count < 2:
                raise ValueError(f"shapes {list(mean.shape)} and {list(covariance.shape)}")
            return ReferenceFID(mean, covariance, count, sync_on_compute=False)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise UsageError(
            f"--{option}: {path!r} does not hold reference statistics ({error}). Give a "
            ".safetensors file with `mean`, `covariance` and the image count."
        ) from error
