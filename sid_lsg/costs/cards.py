"""GPUs by name: peak TFLOP/s, memory, and the share of the peak that a run reaches."""

from typing import Literal, NamedTuple

GPU = Literal[
    "b200", "h200", "h100", "h100-pcie", "a100", "a100-40",
    "l40s", "a6000", "a10", "5090", "4090", "3090",
]  # fmt: skip


class Card(NamedTuple):
    """A GPU's peak TFLOP/s (dense, float32 accumulation) and its memory in GiB."""

    float32: float
    tf32: float
    half: float
    memory_gib: float


# From NVIDIA's data sheets and architecture white papers. Many of them state the peak with
# sparsity, which is twice the dense one. Memory is what nvidia-smi reports.
CARDS: dict[str, Card] = {
    "b200": Card(75.0, 1125.0, 2250.0, 178.0),  # DGX B200 data sheet, one of its eight GPUs
    "h200": Card(66.9, 494.7, 989.4, 140.0),  # H200 data sheet (SXM)
    "h100": Card(66.9, 494.7, 989.4, 79.6),  # H100 white paper, SXM5
    "h100-pcie": Card(51.2, 378.0, 756.0, 79.6),  # H100 white paper, PCIe
    "a100": Card(19.5, 156.0, 312.0, 80.0),  # A100 data sheet, 80 GB
    "a100-40": Card(19.5, 156.0, 312.0, 40.0),  # A100 data sheet, 40 GB
    "l40s": Card(91.6, 183.0, 362.0, 45.0),  # L40S data sheet
    "a6000": Card(38.7, 77.4, 154.8, 48.0),  # Ampere GA102 white paper, RTX A6000
    "a10": Card(31.2, 62.5, 125.0, 22.5),  # A10 data sheet
    "5090": Card(104.8, 104.8, 209.5, 31.8),  # RTX Blackwell white paper
    "4090": Card(82.6, 82.6, 165.2, 24.0),  # Ada white paper
    "3090": Card(35.6, 35.6, 71.0, 24.0),  # Ampere GA102 white paper
}

# Share of an H200's peak that an iteration of Stable Diffusion 1.5 reached at 512 px, all
# operations included, at micro-batches large enough that the GPU did not wait for the host: fp32 at
# micro-batch 4, TF32 at 8, bf16 at 16 (results/benchmarks/sd15_h200_*). Compiled float32 has not
# been measured.
REACHED = {"float32": 0.39, "tf32": 0.13, "half": 0.19}
REACHED_COMPILED = REACHED | {"half": 0.29}
