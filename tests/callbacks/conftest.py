"""Fixtures of the callback tests; most tests share the directory of one run."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from sid_lsg.callbacks import Checkpoint, Export, ImageGrid, Progress, Throughput
from sid_lsg.loggers import CSVLogger
from sid_lsg.metrics.features import CLIPFeatures
from sid_lsg.metrics.protocol import clip_protocol
from sid_lsg.training.module import SiDLSG
from tests.helpers import health_runs
from tests.helpers.callback_runs import EVERY, PROMPTS, Files, Run, fit, metrics
from tests.helpers.embedders import DIMENSION, make_clip
from tests.helpers.statistics import statistics


@pytest.fixture(scope="package")
def files(tmp_path_factory: pytest.TempPathFactory, small_sd: str) -> Files:
    folder = tmp_path_factory.mktemp("callbacks")
    (folder / "prompts.txt").write_text("\n".join(PROMPTS))
    features = torch.randn(50, DIMENSION, generator=torch.Generator().manual_seed(0))
    clip = make_clip(folder / "clip", Path(small_sd, "tokenizer"))
    protocol = clip_protocol(CLIPFeatures.from_pretrained(str(clip)), fast=True)
    reference = statistics(features, protocol=protocol.identity)
    reference.save(folder / "reference.safetensors")
    names = (str(folder / name) for name in ("reference.safetensors", "prompts.txt"))
    return Files(folder, str(clip), *names)


@pytest.fixture(scope="package")
def run(small_sd: str, files: Files) -> Run:
    """Train with every callback in a directory that contains an earlier export."""
    root = files.folder / "run"
    (root / "generator").mkdir(parents=True)
    (root / "generator" / "earlier.txt").touch()
    return fit(
        small_sd,
        files,
        root,
        Checkpoint(every_n_steps=3, keep=2),
        ImageGrid(every_n_steps=EVERY, num_images=4),
        Throughput(),
        Progress(refresh_rate=1),
        Export(),
        metrics(files),
        logger=CSVLogger(str(root), name="", version=""),
    )


@pytest.fixture
def earlier(run: Run, tmp_path: Path) -> Path:
    """Return a directory with the files needed to continue the run."""
    root = tmp_path / "run"
    shutil.copytree(run.root / "checkpoints", root / "checkpoints", symlinks=True)
    return root


@pytest.fixture
def tiny(small_sd: str, tmp_path: Path) -> Callable[..., SiDLSG]:
    """Return a function that trains the tiny pipeline and logs every second iteration."""

    def run(*callbacks: L.Callback, **options: Any) -> SiDLSG:
        options = {"module": health_runs.Shaken, "max_steps": 8, "log_every_n_steps": 2} | options
        return health_runs.fit(tmp_path, *callbacks, teacher=small_sd, **options)

    return run
