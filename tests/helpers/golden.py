"""Read the recorded numbers of the official code, and define the tolerances."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.helpers.paths import GOLDEN

# Kernels of another processor round the last bits of every layer differently from the machine that
# recorded the numbers. Each bound is the index's `tolerances_measured` times this factor.
OTHER_PROCESSOR = 4
OUTPUT = 1.4e-6 * OTHER_PROCESSOR  # relative L2, any micro-batch
LOSS = 4e-7 * OTHER_PROCESSOR  # of the sum over elements of the loss's magnitude
GRADIENT = 1e-5 * OTHER_PROCESSOR  # relative L2 per tensor
LOSS_FAKE_TRAJECTORY = 2e-7 * OTHER_PROCESSOR  # relative L2 over iterations
LOSS_G_TRAJECTORY = 4e-5 * OTHER_PROCESSOR  # relative, each iteration
MOVED = 1.5e-4 * OTHER_PROCESSOR  # L2 relative to the distance moved


@dataclass
class Golden:
    """A folder of recorded numbers; pipelines, weights and inputs default to the repository's."""

    root: Path
    index: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        own, ours = (json.loads((root / "index.json").read_text()) for root in (self.root, GOLDEN))
        self.index = ours | own | {"files": ours["files"] | own["files"]}

    def path(self, name: str) -> Path:
        return self.root / name if (self.root / name).exists() else GOLDEN / name

    def tensors(self, name: str) -> dict[str, Tensor]:
        return load_file(self.path(f"{name}.safetensors"))

    def entry(self, name: str) -> dict[str, Any]:
        return self.index["files"][f"{name}.safetensors"]

    @property
    def names(self) -> list[str]:
        return self.index["param_names"]


def error(actual: Tensor, expected: Tensor) -> float:
    """Return the relative L2 distance in float64; infinite if anything is not finite."""
    actual, expected = actual.double(), expected.double()
    assert actual.shape == expected.shape
    distance = float((actual - expected).norm() / expected.norm().clamp(min=1e-30))
    return distance if actual.isfinite().all() else float("inf")


def fingerprint(tensors: list[Tensor]) -> Tensor:
    """Return [n, 2] float64: each tensor's L2 norm and its dot product with cos(0.7 i + 0.3)."""

    def one(tensor: Tensor) -> list[float]:
        flat = tensor.double().contiguous().flatten()
        wave = torch.cos(0.7 * torch.arange(len(flat), dtype=torch.float64) + 0.3)
        return [float(flat.norm()), float(flat @ wave)]

    return torch.tensor([one(tensor) for tensor in tensors], dtype=torch.float64)


def check_fingerprint(tensors: list[Tensor], expected: Tensor, tolerance: float) -> None:
    """Compare norms by relative error, and projections relative to the norms."""
    actual = fingerprint(tensors)
    scale = expected[:, :1].clamp(min=1e-30)
    # A projection on cosines sums over entries of size ~ norm / sqrt(n) with weights ~ 0.7.
    wave_norm = torch.tensor([[1.0, max(1.0, (t.numel() / 2) ** 0.5)] for t in tensors])
    worst = ((actual - expected).abs() / scale / wave_norm).amax(dim=0)
    assert worst[0] < tolerance, f"norms differ by {worst[0]:.2e}"
    assert worst[1] < tolerance, f"projections differ by {worst[1]:.2e}"
