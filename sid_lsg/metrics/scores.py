"""FID and CLIP score."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric

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


def cosines(images: Tensor, texts: Tensor) -> Tensor:
    """Return the CLIP scores of pairs of embeddings [B, D]: cosine similarities [B] float64."""
    return F.cosine_similarity(images.double(), texts.double())
