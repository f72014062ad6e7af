"""Checkpoints saved on schedule, and runs that continue from them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import wandb
from lightning.pytorch.loggers import Logger, WandbLogger

from sid_lsg.callbacks import Checkpoint, Export, ImageGrid, Progress, Throughput
from sid_lsg.loggers import CSVLogger
from tests.helpers.callback_runs import BATCH, FID, STEPS, Files, Run, fit, metrics, rows


def test_checkpoints_are_saved_on_schedule_and_at_the_end(run: Run) -> None:
    folder = run.root / "checkpoints"
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["0000003.ckpt", "0000004.ckpt", "last.ckpt"]
    assert (folder / "last.ckpt").is_symlink()
    assert (folder / "last.ckpt").resolve() == (folder / "0000004.ckpt").resolve()
    # relative, so the run can be moved
    assert (folder / "last.ckpt").readlink() == Path("0000004.ckpt")


def test_checkpoints_are_plain_tensors_without_the_teacher(run: Run) -> None:
    for name, step in (("0000003.ckpt", 3), ("last.ckpt", STEPS)):
        checkpoint = torch.load(run.root / "checkpoints" / name, weights_only=True)
        assert checkpoint["global_step"] == step
        assert len(checkpoint["optimizer_states"]) == 2
        weights = checkpoint["state_dict"]
        networks = {name.split(".")[0] for name in weights}
        assert networks == {"fake_score", "generator", "ema"}
    assert all(torch.equal(value, weights[name]) for name, value in run.module.state_dict().items())


class Iterations(L.Callback):
    """Record which iterations ran."""

    def __init__(self) -> None:
        self.ran: list[int] = []

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, index: int) -> None:
        self.ran.append(batch.iteration)


LOGGERS: dict[str, Callable[[Path], Logger | bool]] = {
    "none": lambda root: False,
    "csv": lambda root: CSVLogger(str(root), name="", version=""),
    "wandb": lambda root: WandbLogger(project="sid-lsg", save_dir=str(root), mode="disabled"),
}


@pytest.mark.parametrize("logger", LOGGERS)
@pytest.mark.slow
def test_ckpt_path_last_works_with_any_logger(
    small_sd: str, files: Files, earlier: Path, logger: str
) -> None:
    """Lightning looks for `last` before callbacks are set up, where the logger suggests."""
    iterations, progress = Iterations(), Progress(refresh_rate=1)
    pictures = ImageGrid(every_n_steps=1, num_images=1)
    callbacks = [Checkpoint(), iterations, progress, pictures]
    options = {"logger": LOGGERS[logger](earlier), "max_steps": STEPS + 2, "ckpt_path": "last"}
    fit(small_sd, files, earlier, *callbacks, **options)
    wandb.finish()
    assert iterations.ran == [STEPS, STEPS + 1]
    bar = progress.train_progress_bar
    assert (bar.n, bar.total) == (STEPS + 2, STEPS + 2)
    grids = sorted(path.name for path in (earlier / "grids").iterdir())
    # Each iteration's grid once; also that of the last saved one, whose run drew none.
    assert grids == [f"step-{step:07d}.png" for step in (STEPS, 5, 6)]


def test_last_is_the_newest_checkpoint_after_a_moved_run_continued(
    small_sd: str, files: Files, earlier: Path
) -> None:
    fit(small_sd, files, earlier, Checkpoint(), max_steps=STEPS + 1, ckpt_path="last")
    links = {p.name: str(p.readlink()) for p in (earlier / "checkpoints").glob("last*")}
    assert links == {"last.ckpt": "0000005.ckpt"}


@pytest.mark.parametrize("named", [False, True])
def test_a_checkpoint_without_last_is_deleted_like_others_unless_it_is_named(
    small_sd: str, files: Files, earlier: Path, named: bool
) -> None:
    """A run can be killed after its first checkpoint is written, and before last.ckpt names it."""
    folder = earlier / "checkpoints"
    for name in ("last.ckpt", "0000003.ckpt"):
        (folder / name).unlink()
    path = str(folder / "0000004.ckpt") if named else "last"
    fit(small_sd, files, earlier, Checkpoint(keep=1), max_steps=STEPS + 1, ckpt_path=path)
    kept = ["0000004.ckpt"] * named
    assert sorted(p.name for p in folder.iterdir()) == [*kept, "0000005.ckpt", "last.ckpt"]


@pytest.mark.slow
def test_continuing_keeps_logged_rows(
    small_sd: str, files: Files, run: Run, tmp_path: Path
) -> None:
    root = Path(shutil.copytree(run.root, tmp_path / "run", symlinks=True))
    logger = CSVLogger(str(root), name="", version="")
    callbacks = [Checkpoint(), Throughput(), metrics(files)]
    options = {"logger": logger, "max_steps": STEPS + 2, "ckpt_path": "last"}
    after = rows(fit(small_sd, files, root, *callbacks, **options))
    for name in ("loss_fake", FID):
        assert [int(row["step"]) for row in after if row[name]] == [2, 4, 6]
    before = rows(run)
    assert after[: len(before)] == before


def test_a_changed_learning_rate_applies_to_a_continued_run(
    small_sd: str, files: Files, earlier: Path
) -> None:
    """torch would restore the learning rate of the checkpoint. The moments are kept."""
    options = {"max_steps": STEPS + 1, "ckpt_path": "last", "lr": 5e-4}
    for optimizer in fit(small_sd, files, earlier, Checkpoint(), **options).trainer.optimizers:
        assert optimizer.param_groups[0]["lr"] == 5e-4
        assert float(next(iter(optimizer.state.values()))["step"]) == STEPS + 1


@pytest.mark.slow
def test_a_finished_run_can_be_started_again(small_sd: str, files: Files, earlier: Path) -> None:
    """Nothing is left to train; the summary is still written."""
    again = fit(small_sd, files, earlier, Checkpoint(), Export(), metrics(files), ckpt_path="last")
    assert again.trainer.global_step == STEPS
    summary = json.loads((earlier / "summary.json").read_text())
    assert summary["images_seen"] == STEPS * BATCH
    assert summary[FID] > 0


def test_restarting_a_finished_run_completes_its_export_and_comparison(
    small_sd: str, files: Files, earlier: Path
) -> None:
    """For example, a full disk prevented the export and a signal the comparison."""
    last = torch.load(earlier / "checkpoints" / "last.ckpt", weights_only=True)
    seconds = last["callbacks"]["Metrics"]["fit_seconds"]
    assert 0 < seconds < 100
    assert not (earlier / "generator").exists()
    checkpoint = Checkpoint(best=FID)
    own = metrics(files)
    fit(small_sd, files, earlier, checkpoint, Export(), own, ckpt_path="last")
    assert (earlier / "generator" / "unet" / "diffusion_pytorch_model.safetensors").is_file()
    after = json.loads((earlier / "summary.json").read_text())
    assert after["fit_seconds"] == round(seconds, 1)  # without the time of the comparison
    assert checkpoint.best is not None
    assert checkpoint.best.state_dict()["value"] == pytest.approx(after[FID])
    assert (earlier / "checkpoints" / "best.ckpt").exists()
