"""A logger that fails does not end a run."""

import csv
import os
import signal
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.loggers import CSVLogger as LightningCSVLogger

from sid_lsg.loggers import CSVLogger, Tolerance
from tests.helpers import forked
from tests.helpers.checkpoint_runs import command, refused, run
from tests.helpers.runs import workers

__all__ = ["command", "run"]


class Failing(LightningCSVLogger):
    """Raise in `log_metrics` while `fails` is set."""

    fails = True

    def __init__(self, save_dir: str = ".") -> None:
        super().__init__(save_dir)
        self.logged: list[int | None] = []

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:  # type: ignore[override]
        if self.fails:
            raise ConnectionResetError("gone")
        self.logged.append(step)


def test_a_failing_logger_warns_once_and_is_tried_again(tmp_path: Path) -> None:
    logger, own = Failing(str(tmp_path)), CSVLogger(str(tmp_path))
    tolerance = Tolerance([logger, own])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in (1, 2):
            logger.log_metrics({"x": 1.0}, step)
        tolerance.revive()
        logger.log_metrics({"x": 1.0}, 3)
        logger.fails = False
        logger.log_metrics({"x": 1.0}, 4)  # not tried before the next checkpoint
        tolerance.revive()
        logger.log_metrics({"x": 1.0}, 5)
    assert logger.logged == [5]
    said = "--trainer.logger: Failing raised ConnectionResetError in log_metrics: gone."
    (failure,) = tolerance.failures
    assert failure == said
    assert [str(w.message).startswith(said) for w in caught].count(True) == 1


@pytest.mark.slow
def test_a_run_with_a_failing_logger_ends_complete_and_says_so(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loggers = ["--trainer.logger=CSVLogger", f"--trainer.logger+={__name__}.Failing"]
    message = refused(command, capsys, *loggers)
    assert "Failing raised ConnectionResetError in log_metrics: gone. The results of" in message
    with (tmp_path / "run/metrics.csv").open() as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["1", "2", "3"]
    assert (tmp_path / "run/summary.json").exists()


@pytest.mark.slow
def test_a_run_survives_the_death_of_wandbs_service(command: list[str], tmp_path: Path) -> None:
    """A new service continues to log after the next checkpoint; the program ends by itself."""
    steps = 12
    options = ["--trainer.logger=WandbLogger", "--trainer.logger+=CSVLogger",
               f"--trainer.max_steps={steps}", "--checkpoint.every_n_steps=4"]  # fmt: skip
    log = tmp_path / "log"
    entry, line, environment = (
        ["-m", "sid_lsg.cli"],
        [*command, *options],
        {"WANDB_MODE": "offline"},
    )
    process = forked.start(forked.program, entry, line, tmp_path, log=log, environment=environment)
    metrics = tmp_path / "run/metrics.csv"
    while not metrics.exists() and process.is_alive():
        time.sleep(0.05)
    assert process.pid
    services = [pid for pid in workers(process.pid) if b"wandb" in cmdline(pid)]
    for pid in services:
        os.kill(pid, signal.SIGKILL)
    process.join(240)
    said = log.read_text()
    assert services
    assert process.exitcode == 0, said[-3000:]
    assert "Traceback" not in said
    assert said.count("--trainer.logger: WandbLogger raised") == 1
    with metrics.open() as file:
        assert [int(row["step"]) for row in csv.DictReader(file)] == list(range(1, steps + 1))
    assert len([*tmp_path.glob("run/wandb/offline-run-*")]) == 2


def cmdline(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()
