"""Random features, their statistics, and FID as scipy computes it."""

from typing import Any

import numpy as np
import scipy.linalg
import torch
from torch import Tensor

from sid_lsg.metrics.alignment import Pixels
from sid_lsg.metrics.statistics import Moments, Statistics

PIXELS = Pixels(torch.full((3, 256), 1 / 256).double(), torch.ones(17).double(), 1)


def normal(count: int, seed: int, dimension: int = 8) -> Tensor:
    """Draw correlated features whose mean is not zero."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(dimension, dimension, generator=generator, dtype=torch.float64)
    shift = 3 * torch.randn(dimension, generator=generator, dtype=torch.float64)
    return torch.randn(count, dimension, generator=generator, dtype=torch.float64) @ mixing + shift


def statistics(features: Tensor, *sizes: int, **about: Any) -> Statistics:
    """Accumulate features in batches of the given sizes, or in one batch."""
    moments = Moments(features.shape[1])
    for part in features.split(list(sizes) or [len(features)]):
        moments.update(part)
    mean, covariance, count, kept = moments.compute()
    return Statistics(mean, covariance, count, kept, PIXELS, about)


def scipy_fid(a: Tensor, b: Tensor) -> float:
    """Compute |mu_a - mu_b|^2 + tr(S_a + S_b - 2 sqrtm(S_a S_b)) literally."""
    x, y = a.double().numpy(), b.double().numpy()
    s_x, s_y = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    product = np.real(scipy.linalg.sqrtm(s_x @ s_y))
    distance = np.square(x.mean(0) - y.mean(0)).sum()
    return float(distance + np.trace(s_x) + np.trace(s_y) - 2 * np.trace(product))
