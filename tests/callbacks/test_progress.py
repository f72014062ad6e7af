"""The progress bar."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest

from sid_lsg.callbacks import Progress
from sid_lsg.loggers import CSVLogger
from tests.helpers.callback_runs import EVERY, STEPS, Files, Run, fit, metrics


def test_the_progress_bar_counts_iterations(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (progress,) = [c for c in run.trainer.callbacks if isinstance(c, Progress)]  # type: ignore[attr-defined]
    bar = progress.train_progress_bar
    assert (bar.n, bar.total) == (STEPS, STEPS)
    monkeypatch.setattr(run.trainer, "loggers", [CSVLogger(str(tmp_path), version=3)])
    monkeypatch.setattr(progress, "_row", -1)  # as if this were the first row
    shown = progress.get_metrics(run.trainer, run.module)
    assert {"loss_fake", "loss_generator", "images_per_s"} <= shown.keys()
    assert "v_num" not in shown


def test_the_progress_bar_reads_each_row_once(
    small_sd: str, files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading a loss waits for the device, so not every redraw of the bar may read it."""
    read, drawn = [], []
    progress = Progress(refresh_rate=1)
    values: Any = L.Trainer.progress_bar_metrics.fget  # type: ignore[attr-defined]

    def reading(trainer: L.Trainer) -> Any:
        read.append(trainer.global_step)
        return values(trainer)

    class Drawn(L.Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            drawn.append("loss_fake" in progress.train_progress_bar.postfix)

    monkeypatch.setattr(L.Trainer, "progress_bar_metrics", property(reading))
    fit(small_sd, files, tmp_path, progress, Drawn(), max_steps=2 * EVERY + 1)
    assert read == [1, EVERY, 2 * EVERY]
    assert drawn == [step >= EVERY for step in range(1, 2 * EVERY + 2)]


def test_without_a_bar_the_evaluation_has_none_either(
    small_sd: str, files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"num_images": 2, "teacher_steps": 1, "num_pictured": 1}
    fit(small_sd, files, tmp_path, Progress(0), metrics(files, **options), max_steps=1)
    printed = capsys.readouterr()
    assert "SiD-LSG" in printed.out  # the table
    assert "untrained, 1 step:" not in printed.out + printed.err
