"""Train the tiny pipeline with callbacks, and read what a run wrote."""

import csv
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import numpy as np
import torch
from lightning.pytorch.loggers import Logger
from PIL import Image

from sid_lsg.callbacks import Checkpoint, Metrics, Progress
from sid_lsg.data.prompts import PromptDataModule
from sid_lsg.training.module import SiDLSG

PROMPTS = ["a red cat", "two dogs on a log", "something else"]
BATCH, STEPS, EVERY = 2, 4, 2
NUM_IMAGES, NUM_PICTURED = 5, 2
FID, CLIP = "fid_fast_5", "clip_score_fast_5"


class Run(NamedTuple):
    """A finished run: its directory, module and trainer."""

    root: Path
    module: SiDLSG
    trainer: L.Trainer


class Files(NamedTuple):
    """The inputs of a run, in one folder."""

    folder: Path
    clip: str
    reference: str
    prompts: str


def fit(
    small_sd: str,
    files: Files,
    root: Path,
    *callbacks: L.Callback,
    logger: Logger | bool = False,
    max_steps: int = STEPS,
    ckpt_path: str | None = None,
    num_steps: int = 1,
    lr: float = 1e-3,  # moves visibly in a few steps
    accelerator: str = "cpu",
) -> Run:
    def adam(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, lr=lr)

    module = SiDLSG(small_sd, num_steps=num_steps, optimizer_fake=adam, optimizer_generator=adam)
    trainer = L.Trainer(
        accelerator=accelerator,
        devices=1,
        max_steps=max_steps,
        max_epochs=-1,
        default_root_dir=root,
        logger=logger,
        callbacks=list(callbacks),
        log_every_n_steps=EVERY,
        use_distributed_sampler=False,
        enable_model_summary=False,
        enable_checkpointing=any(isinstance(c, Checkpoint) for c in callbacks),
        enable_progress_bar=any(isinstance(c, Progress) for c in callbacks),
    )
    data = PromptDataModule(files.prompts, batch_size=BATCH, num_workers=0)
    trainer.fit(module, data, ckpt_path=ckpt_path, weights_only=True)
    return Run(root, module, trainer)


def metrics(files: Files, **options: Any) -> Metrics:
    defaults = {
        "every_n_images": EVERY * BATCH,
        "num_images": NUM_IMAGES,
        "batch_size": 3,
        "teacher_steps": 2,
        "num_pictured": NUM_PICTURED,
    }
    return Metrics(files.clip, "", reference=files.reference, **defaults | options)


def rows(run: Run) -> list[dict[str, str]]:
    with (run.root / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture.convert("RGB"))
