"""A checkpoint is saved before its iteration is evaluated, and evaluations are made up for."""

import csv
import errno
import os
import signal
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
from PIL import Image

from sid_lsg.callbacks import Checkpoint, ImageGrid, Interruption
from sid_lsg.callbacks import checkpoint as checkpoint_module
from sid_lsg.messages.errors import Interrupted
from sid_lsg.training.callback import RunCallback, leaving
from tests.helpers.checkpoint_runs import empty, fit, load, names, run, slow_writes

__all__ = ["empty", "run", "slow_writes"]


class Evaluated(RunCallback):
    """Act when an iteration is evaluated, every second one as a logged score would be."""

    def __init__(self, act: Callable[[L.Trainer], Any] = lambda trainer: None) -> None:
        self.act, self.seen = act, list[int]()

    def on_iterated(self, trainer: L.Trainer, pl_module: Any) -> None:
        if trainer.global_step % 2 == 0:
            self.seen.append(trainer.global_step)
            self.act(trainer)
            trainer.logger.log_metrics({"score": float(trainer.global_step)}, trainer.global_step)


def scores(root: Path) -> dict[int, str]:
    with (root / "metrics.csv").open() as file:
        return {int(row["step"]): row.get("score", "") for row in csv.DictReader(file)}


@pytest.mark.slow
@pytest.mark.usefixtures("slow_writes")
def test_an_error_in_an_evaluation_does_not_lose_the_checkpoint(small_sd: str, empty: Path) -> None:
    def fail(trainer: L.Trainer) -> None:
        if trainer.global_step == 4:
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError):
        fit(small_sd, empty, Checkpoint(every_n_steps=2, keep=2), Evaluated(fail))
    assert load(empty / "checkpoints/last.ckpt")["global_step"] == 4
    again = Evaluated()
    fit(small_sd, empty, Checkpoint(every_n_steps=2, keep=2), again, ckpt_path="last")
    assert again.seen == [4, 6]
    expected = {step: f"{step}.0" if step % 2 == 0 else "" for step in range(1, 7)}
    assert scores(empty) == expected


@pytest.mark.slow
def test_a_signal_skips_the_evaluations_that_are_due(small_sd: str, empty: Path) -> None:
    class Signal(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
            if trainer.global_step == 4:
                os.kill(os.getpid(), signal.SIGTERM)

    evaluated = Evaluated()
    with pytest.raises(Interrupted):
        fit(small_sd, empty, Interruption(), Checkpoint(), evaluated, Signal())
    assert evaluated.seen == [2]
    assert load(empty / "checkpoints/last.ckpt")["global_step"] == 4
    again = Evaluated()
    fit(small_sd, empty, Interruption(), Checkpoint(), again, ckpt_path="last")
    assert (again.seen, scores(empty)[4]) == ([4, 6], "4.0")


def test_a_signal_leaves_a_running_evaluation(small_sd: str, empty: Path) -> None:
    batches = []

    def sample(trainer: L.Trainer) -> None:
        sampler = leaving(trainer, batches.append)
        for batch in range(3):
            sampler((trainer.global_step, batch))
            if trainer.global_step == 4 and batch == 1:
                os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted, match="SIGTERM after iteration 4: the state is saved"):
        fit(small_sd, empty, Interruption(), Checkpoint(), Evaluated(sample))
    assert batches == [(2, 0), (2, 1), (2, 2), (4, 0), (4, 1)]
    assert load(empty / "checkpoints/last.ckpt")["global_step"] == 4


def test_a_full_disk_in_the_grid_is_a_warning(
    small_sd: str, empty: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Image.Image, "save", full)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(small_sd, empty, Checkpoint(), ImageGrid(2, 1, ["a"]), max_steps=2)
    said = [str(w.message) for w in caught if "could not be written" in str(w.message)]
    assert said == [
        f"The grid of iteration {step} could not be written (No space left on device)."
        for step in (0, 2)
    ]
    assert load(empty / "checkpoints/last.ckpt")["global_step"] == 2


@pytest.mark.slow
def test_a_checkpoint_is_due_after_some_minutes(
    small_sd: str, empty: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(checkpoint_module.time, "monotonic", lambda: now[0])

    class Clock(L.Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            now[0] += 60.0  # a minute for each iteration

    checkpoint = Checkpoint(every_n_steps=1000, every_minutes=2, keep=-1)
    fit(small_sd, empty, Interruption(), Clock(), checkpoint, max_steps=5)
    assert names(empty) == ["0000002.ckpt", "0000004.ckpt", "0000005.ckpt", "last.ckpt"]
