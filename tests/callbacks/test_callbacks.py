"""Train the tiny pipeline with all callbacks together."""

import json
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
import wandb
from lightning.pytorch.loggers import WandbLogger

from sid_lsg.callbacks import Checkpoint, Export, ImageGrid, Metrics, Progress, Throughput
from sid_lsg.callbacks.prompts import spread
from sid_lsg.images.pixels import to_pil
from sid_lsg.messages.errors import UsageError
from sid_lsg.training.callback import RunCallback
from sid_lsg.training.module import SiDLSG
from tests.helpers.callback_runs import (
    BATCH,
    CLIP,
    EVERY,
    FID,
    PROMPTS,
    STEPS,
    Files,
    Run,
    fit,
    metrics,
    pixels,
)


def test_no_temporary_files_are_left(run: Run) -> None:
    assert sorted(path.name for path in run.root.iterdir()) == [
        "checkpoints", "comparison.png", "generator", "grids", "metrics.csv", "summary.json",
    ]  # fmt: skip
    assert [path for path in run.root.rglob("*") if "tmp" in path.name] == []


def test_evaluation_never_changes_training(small_sd: str, files: Files, run: Run) -> None:
    bare = fit(small_sd, files, files.folder / "bare")
    with_all = run.module.state_dict()
    assert with_all.keys() == bare.module.state_dict().keys()
    for name, value in bare.module.state_dict().items():
        assert torch.equal(value, with_all[name]), name
    start = bare.module.teacher.network.state_dict()
    for network in (bare.module.generator, bare.module.fake_score, bare.module.ema):
        # training changed the weights
        assert not torch.equal(network.conv_out.weight, start["conv_out.weight"])
    assert not (files.folder / "bare").exists()


def test_disabled_callbacks_leave_nothing(
    small_sd: str, files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No grids, scores, export or progress bar."""
    (tmp_path / "run").mkdir()
    off = [ImageGrid(every_n_steps=0), Metrics(), Progress(refresh_rate=0)]
    fit(small_sd, files, tmp_path / "run", *off, max_steps=1)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["summary.json"]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary.keys() == {"fit_seconds", "images_seen", "iterations", "export"}
    assert summary["export"] is None
    printed = capsys.readouterr()
    assert "distilling" not in printed.out + printed.err


@pytest.mark.gpu
def test_a_run_on_a_gpu_is_scored_at_its_end(small_sd: str, files: Files, tmp_path: Path) -> None:
    where: set[str] = set()

    class Where(RunCallback):
        def on_trained(self, trainer: L.Trainer, module: SiDLSG) -> None:
            where.update(p.device.type for p in module.parameters())

    callbacks = [Checkpoint(), ImageGrid(every_n_steps=EVERY, num_images=4), Export()]
    own = metrics(files)
    fit(small_sd, files, tmp_path, *callbacks, own, Where(), accelerator="gpu")
    assert where == {"cuda"}
    assert json.loads((tmp_path / "summary.json").read_text())["iterations"] == STEPS


@pytest.mark.parametrize(
    ("callback", "option", "value"),
    [
        (ImageGrid, "image_grid.every_n_steps", -1),
        (ImageGrid, "image_grid.num_images", 0),
        (Export, "export.every_n_steps", -1),
        (Metrics, "metrics.every_n_images", -1),
        (Metrics, "metrics.num_images", 1),
        (Metrics, "metrics.batch_size", 0),
        (Metrics, "metrics.teacher_steps", 0),
        (Metrics, "metrics.num_pictured", 0),
        (Checkpoint, "checkpoint.every_n_steps", -1),
        (Checkpoint, "checkpoint.keep", -2),
    ],
)
def test_impossible_numbers_are_rejected(callback: Any, option: str, value: int) -> None:
    with pytest.raises(UsageError, match=rf"--{option} must be at least -?\d, got {value}"):
        callback(**{option.split(".")[1]: value})


@pytest.mark.slow
def test_wandb_gets_grids_and_scores(
    small_sd: str, files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("CACHE", "CONFIG", "DATA", "ARTIFACT"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / "wandb-own"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    wandb.finish()  # close a run that another test may have left open
    wandb.teardown()  # make wandb read these variables again
    root = tmp_path / "run"
    root.mkdir()
    logger = WandbLogger(project="sid-lsg", save_dir=str(root))
    pictures = ImageGrid(every_n_steps=EVERY, num_images=2)
    result = fit(small_sd, files, root, pictures, Throughput(), metrics(files), logger=logger)
    logged = dict(logger.experiment.summary)
    wandb.finish()
    wandb.teardown()

    summary = json.loads((root / "summary.json").read_text())
    assert logged[FID] == pytest.approx(summary[FID])
    assert logged[CLIP] == pytest.approx(summary[CLIP])
    assert logged["images_seen"] == STEPS * BATCH
    assert logged["images_per_s"] > 0
    assert logged["trainer/global_step"] == result.trainer.global_step == STEPS

    (media,) = root.glob("wandb/offline-run-*/files/media/images")

    def contents(folder: Path, pattern: str) -> list[bytes]:
        return sorted(pixels(path).tobytes() for path in folder.glob(pattern))

    shown = contents(media, "grid_*.png")
    assert len(shown) == 3 * 2  # each grid is logged separately
    module = result.module
    images = module.teacher.decode(module.generate(spread(PROMPTS, 2), range(2)))
    assert {np.asarray(image).tobytes() for image in to_pil(images)} <= set(shown)
    assert contents(media, "comparison_*.png") == contents(root, "comparison.png")
