"""Formulas and sums of scores."""

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from sid_lsg.metrics.statistics import Statistics


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """Compute the Frechet distance between two sets of features, in float64.

        |mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2))        (Heusel et al., 2017)

    The last trace is the sum of the square roots of the eigenvalues of S_a S_b, which are those of
    the symmetric S_a^(1/2) S_b S_a^(1/2). This is exact even for singular covariances.
    """
    values, vectors = torch.linalg.eigh(a.covariance)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    product = torch.linalg.eigvalsh(root @ b.covariance @ root).clamp(min=0).sqrt().sum()
    distance = (a.mean - b.mean).square().sum()
    return float(distance + a.covariance.trace() + b.covariance.trace() - 2 * product)


class Mean(Metric):
    """The mean of values, accumulated in float64.

    Attributes:
        values: This process's values, in the order in which they were added.
    """

    full_state_update = False
    higher_is_better = True
    total: Tensor
    count: Tensor
    values: list[Tensor]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.values = []  # no state, which every computation would gather
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, values: Tensor) -> None:
        """Add values [B]."""
        self.values.append(values.double())
        self.total += values.double().sum()
        self.count += len(values)

    def reset(self) -> None:
        """Forget all values."""
        super().reset()
        self.values = []

    def compute(self) -> Tensor:
        """Return the mean."""
        return self.total / self.count


class Spread(Metric):
    """The diversity of the images of one prompt: the mean of 1 - cosine over pairs of them.

    Averages over pairs, then over the prompts with two or more images; NaN if there are none.
    """

    full_state_update = False
    higher_is_better = True
    features: list[Tensor]
    prompts: list[Tensor]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name in ("features", "prompts"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, features: Tensor, texts: Sequence[str]) -> None:
        """Add features [B, D] of images with their texts."""
        digests = [hashlib.sha256(text.encode()).digest()[:8] for text in texts]
        numbers = [int.from_bytes(digest, "big", signed=True) for digest in digests]
        self.features.append(features)
        self.prompts.append(torch.tensor(numbers, device=features.device))

    def compute(self) -> Tensor:
        """Return the diversity.

        The cosines of all pairs of unit vectors sum to |sum of the vectors|^2 minus their number.
        """
        units = F.normalize(dim_zero_cat(self.features).double(), dim=1)
        _, prompt = dim_zero_cat(self.prompts).unique(return_inverse=True)
        counts = prompt.bincount()
        sums = units.new_zeros(len(counts), units.shape[1]).index_add_(0, prompt, units)
        pairs = counts * (counts - 1)
        return (1 - (sums.square().sum(1) - counts) / pairs)[counts > 1].mean()


def cosines(images: Tensor, texts: Tensor) -> Tensor:
    """Return the cosine similarities [B] float64 of pairs of embeddings [B, D]."""
    return F.cosine_similarity(images.double(), texts.double())
