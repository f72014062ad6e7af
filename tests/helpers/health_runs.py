"""Short distillations that Health watches, and failures to plant in them."""

import csv
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor

from sid_lsg.callbacks import Checkpoint
from sid_lsg.callbacks.health import Health
from sid_lsg.data.prompts import PromptDataModule
from sid_lsg.options.guidance import Guidance
from sid_lsg.options.training import EMA
from sid_lsg.training.module import SiDLSG

CLIP = "package:demo/fashion/clip"
BATCH = 4
KINDS = ("collapse", "misalignment", "instability")


class NoNoise(SiDLSG):
    """Generate the same image of a prompt for every noise."""

    def generate(self, prompts: Sequence[str], seeds: Sequence[int], *rest: Any) -> Tensor:
        return super().generate(prompts, [0] * len(seeds), *rest)


class OneImage(SiDLSG):
    """Ignore the prompt."""

    def generate(self, prompts: Sequence[str], seeds: Sequence[int], *rest: Any) -> Tensor:
        return super().generate(["a pink sandal on a gray background"] * len(prompts), seeds, *rest)


def health(**options: Any) -> Health:
    """Return a Health callback with a small probe every 3 iterations."""
    defaults = {
        "clip": CLIP,
        "every_n_images": 3 * BATCH,
        "num_prompts": 16,
        "num_seeds": 3,
        "batch_size": 48,
        "teacher_steps": 8,
    }
    return Health(**defaults | options)


def fit(
    root: Path,
    *callbacks: L.Callback,
    module: type[SiDLSG] = SiDLSG,
    lr: float = 5e-5,
    max_steps: int = 3,
    teacher: str = "package:demo/fashion",
    log_every_n_steps: int = 1,
    ckpt_path: str | None = None,
) -> SiDLSG:
    """Distil the demo's teacher for `max_steps` iterations of 4 images."""

    def adam(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, lr=lr, betas=(0.0, 0.999))

    trained = module(
        teacher,
        guidance=Guidance("none"),
        optimizer_fake=adam,
        optimizer_generator=adam,
        ema=EMA(halflife_images=1000),
    )
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=max_steps,
        max_epochs=-1,
        default_root_dir=root,
        logger=L.pytorch.loggers.CSVLogger(root, name="", version=""),
        log_every_n_steps=log_every_n_steps,
        callbacks=list(callbacks),
        use_distributed_sampler=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        enable_checkpointing=any(isinstance(c, Checkpoint) for c in callbacks),
    )
    data = PromptDataModule("package:demo/fashion/prompts.txt", batch_size=BATCH, num_workers=0)
    trainer.fit(trained, data, ckpt_path=ckpt_path, weights_only=True)
    return trained


def warned(run: Callable[[], SiDLSG]) -> list[str]:
    """Train and return the warnings of Health."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run()
    return [text for w in caught if (text := str(w.message)).startswith(KINDS)]


def rows(root: Path) -> list[dict[str, str]]:
    with (root / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def step_of(path: Path) -> int:
    return int(torch.load(path, weights_only=True)["global_step"])


class Shaken(SiDLSG):
    """Make far too large updates in the iterations `shaken`, counted from 1."""

    shaken: tuple[int, ...] = (4, 5, 6)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        for group in optimizer.param_groups:
            group["lr"] = 1.0 if self.trainer.global_step + 1 in self.shaken else 1e-5
        super().on_before_optimizer_step(optimizer)
