"""Modules of the tiny pipeline whose networks have LoRA adapters."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from sid_lsg.networks.adapted import adapters
from sid_lsg.options.lora import LoRA
from sid_lsg.options.training import Adapters
from sid_lsg.training.module import SiDLSG

PROMPTS = ["a red cat", "two dogs running", "a blue bird", "the moon"]
SEEDS = [5, 0, 2**40, 1]
ADAPTERS = Adapters(LoRA(4), LoRA(2, alpha=6.0))
BOTH = {"lora": ADAPTERS}
Fit = Callable[..., SiDLSG]


def adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=1e-3, betas=(0.0, 0.999))


def make(small_sd: str, **options: Any) -> SiDLSG:
    return SiDLSG(small_sd, **{"optimizer_fake": adam, "optimizer_generator": adam} | options)


def trainer_of(root: Path, steps: int, *callbacks: L.Callback, **options: Any) -> L.Trainer:
    return L.Trainer(
        accelerator="cpu", max_steps=steps, max_epochs=-1, callbacks=[*callbacks], logger=False,
        log_every_n_steps=1, default_root_dir=root, enable_checkpointing=bool(callbacks),
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
        **options,
    )  # fmt: skip


def stir(network: nn.Module, seed: int = 0) -> nn.Module:
    """Set the adapters to values as after training, since B is initially zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in adapters(network).items():
            if ".lora_B." in name:
                p.copy_(0.1 * torch.randn(p.shape, generator=generator))
    return network


def call(module: SiDLSG, network: nn.Module) -> Tensor:
    with torch.no_grad():
        return module.generate(PROMPTS, SEEDS, network=network)


def relative(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())


def places(tensors: Any) -> set[int]:
    return {tensor.data_ptr() for tensor in tensors}
