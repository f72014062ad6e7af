"""Checkpoints that a thread writes while the training continues."""

import logging
import os
import signal
import time
from pathlib import Path
from typing import Any

import lightning as L
import pytest

from sid_lsg.callbacks import Checkpoint, Interruption
from sid_lsg.checkpoints import host_copy
from sid_lsg.messages.errors import Interrupted
from sid_lsg.training.callback import RunCallback, Saver, find
from tests.helpers.checkpoint_runs import Late, empty, fit, late, load, names, run, slow_writes

__all__ = ["empty", "late", "run", "slow_writes"]


def test_a_file_holds_the_iteration_in_which_it_was_begun(
    small_sd: str, run: Path, empty: Path, late: Late, caplog: pytest.LogCaptureFixture
) -> None:
    """It equals the file of a run that waited, although the training has gone on."""
    with caplog.at_level(logging.INFO, "lightning.pytorch.utilities.rank_zero"):
        fit(small_sd, empty, late, Checkpoint(every_n_steps=2, keep=-1))
    assert late.written == [2, 4]  # the last one is written when nothing is left to train
    assert names(empty) == names(run)
    for name in names(run):
        ours, theirs = ((root / "checkpoints" / name).read_bytes() for root in (empty, run))
        assert ours == theirs, name
    assert (empty / "metrics.csv").read_bytes() == (run / "metrics.csv").read_bytes()
    said = [text for text in caplog.messages if text.startswith("Saved iteration")]
    assert ["training waited" in text for text in said] == [True, True, False]


@pytest.mark.slow
def test_the_training_waits_where_memory_is_short(
    small_sd: str,
    empty: Path,
    late: Late,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(host_copy, "has_room", lambda size: False)
    with caplog.at_level(logging.INFO, "lightning.pytorch.utilities.rank_zero"):
        fit(small_sd, empty, late, Checkpoint(every_n_steps=1, keep=-1), max_steps=3)
    assert late.written == []
    assert names(empty) == [*(f"000000{step}.ckpt" for step in (1, 2, 3)), "last.ckpt"]
    assert sum("host memory has no room for a copy" in text for text in caplog.messages) == 1


@pytest.mark.slow
def test_a_signal_ends_the_run_when_both_checkpoints_are_complete(
    small_sd: str, empty: Path, late: Late
) -> None:
    class Signal(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
            if trainer.global_step == 3:  # while iteration 2 is written
                os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted, match="SIGTERM after iteration 3: the state is saved"):
        fit(small_sd, empty, Interruption(), Signal(), late, Checkpoint(2, keep=-1))
    assert late.written == [2]
    assert names(empty) == ["0000002.ckpt", "0000003.ckpt", "last.ckpt"]
    assert load(empty / "checkpoints/last.ckpt")["global_step"] == 3


class Told(RunCallback):
    """Record when callbacks are told of a checkpoint; wait for the thread in an iteration."""

    def __init__(self, wait_in: int) -> None:
        self.told: list[int] = []
        self.wait_in = wait_in

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        saver, end = find(trainer, Saver), time.monotonic() + 60
        assert saver is not None
        while trainer.global_step == self.wait_in and not saver.has_written(trainer):
            assert time.monotonic() < end
            time.sleep(0.001)

    def on_checkpoint(self, trainer: L.Trainer) -> None:
        self.told.append(trainer.global_step)


@pytest.mark.slow
def test_a_checkpoint_is_announced_before_the_next_iteration(small_sd: str, empty: Path) -> None:
    told = Told(wait_in=3)
    fit(small_sd, empty, Interruption(), Checkpoint(every_n_steps=2), told, max_steps=5)
    assert told.told[0] == 3
    assert len(told.told) == 3


class Healthy(RunCallback):
    """Find iteration 2 healthy, and return to it before iteration 4."""

    def __init__(self) -> None:
        self.found: dict[str, Any] = {}

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == 2:
            self._saver(trainer).mark_good(trainer)

    def on_iterated(self, trainer: L.Trainer, pl_module: Any) -> None:
        if trainer.global_step == 3:
            good = self._saver(trainer).return_to_good(trainer)
            assert good is not None
            last = good.with_name("last.ckpt")
            self.found = {"good": load(good)["global_step"], "last": last.readlink().name}

    def _saver(self, trainer: L.Trainer) -> Saver:
        saver = find(trainer, Saver)
        assert saver is not None
        return saver


@pytest.mark.slow
@pytest.mark.usefixtures("slow_writes")
@pytest.mark.parametrize("every_n_steps", [1, 2])
def test_a_good_checkpoint_is_kept_when_it_is_complete(
    small_sd: str, empty: Path, every_n_steps: int
) -> None:
    healthy = Healthy()
    fit(small_sd, empty, Checkpoint(every_n_steps), healthy, max_steps=4)
    assert healthy.found == {"good": 2, "last": "good.ckpt"}
    assert names(empty) == ["0000004.ckpt", "good.ckpt", "last.ckpt"]
