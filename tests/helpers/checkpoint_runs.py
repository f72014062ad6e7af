"""Runs of the tiny pipeline with checkpoints, and fixtures that copy them."""

import csv
import resource
import shutil
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from sid_lsg.callbacks import Checkpoint, Progress
from sid_lsg.checkpoints import io
from sid_lsg.checkpoints.io import write_file
from sid_lsg.cli import main
from sid_lsg.data.prompts import PromptDataModule
from sid_lsg.loggers import CSVLogger
from sid_lsg.training.module import SiDLSG

PROMPTS = ["a red cat", "two dogs on a log", "something else"]
STEPS = 6


class Iterations(L.Callback):
    """Record which iterations ran."""

    def __init__(self) -> None:
        self.ran: list[int] = []

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, index: int) -> None:
        self.ran.append(batch.iteration)


def fit(
    teacher: str,
    root: Path,
    *callbacks: L.Callback,
    max_steps: int = STEPS,
    ckpt_path: str | None = None,
    optimizer: Any = torch.optim.Adam,
    weights_only: bool | None = None,
) -> SiDLSG:
    def make(parameters: Any) -> torch.optim.Optimizer:
        return optimizer(parameters, lr=1e-3)

    module = SiDLSG(teacher, optimizer_fake=make, optimizer_generator=make)
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=max_steps,
        max_epochs=-1,
        default_root_dir=root,
        logger=CSVLogger(str(root)),
        callbacks=list(callbacks),
        log_every_n_steps=1,
        use_distributed_sampler=False,
        enable_model_summary=False,
        enable_progress_bar=any(isinstance(c, Progress) for c in callbacks),
    )
    data = PromptDataModule(str(root.parent / "prompts.txt"), batch_size=2, num_workers=0)
    trainer.fit(module, data, ckpt_path=ckpt_path, weights_only=weights_only)
    return module


@pytest.fixture(scope="module")
def run(small_sd: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train an uninterrupted run with a checkpoint every second iteration."""
    root = tmp_path_factory.mktemp("checkpoints") / "run"
    (root.parent / "prompts.txt").write_text("\n".join(PROMPTS))
    fit(small_sd, root, Checkpoint(every_n_steps=2, keep=-1, background=False))
    return root


@pytest.fixture
def copied(run: Path, tmp_path: Path) -> Path:
    shutil.copy(run.parent / "prompts.txt", tmp_path)
    return Path(shutil.copytree(run, tmp_path / "run", symlinks=True))


@pytest.fixture
def empty(run: Path, tmp_path: Path) -> Path:
    """Return a run directory that does not exist yet."""
    shutil.copy(run.parent / "prompts.txt", tmp_path)
    return tmp_path / "run"


def load(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


def names(root: Path) -> list[str]:
    return sorted(path.name for path in (root / "checkpoints").iterdir())


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def steps(root: Path) -> list[int]:
    with (root / "metrics.csv").open() as file:
        return [int(row["step"]) for row in csv.DictReader(file)]


def warned(action: Callable[[], Any]) -> list[str]:
    """Return the warnings that are about checkpoints."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        action()
    texts = [str(warning.message) for warning in caught]
    return [
        t for t in texts if t.startswith(("--ckpt_path", "--checkpoint", "could not", "The ch"))
    ]


@pytest.fixture
def command(small_sd: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(sys, "argv", ["sid_lsg"])
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")  # the command line sets it; monkeypatch restores it
    monkeypatch.chdir(tmp_path)
    shutil.copy(run.parent / "prompts.txt", tmp_path)
    options = {
        "model.teacher": small_sd,
        "data.prompts": "prompts.txt",
        "data.batch_size": 1,
        "data.num_workers": 0,
        "trainer.accelerator": "cpu",
        "trainer.max_steps": 3,
        "trainer.log_every_n_steps": 1,
        "trainer.default_root_dir": "run",
        "checkpoint.every_n_steps": 1,
        "image_grid.every_n_steps": 0,
        "progress.refresh_rate": 0,
    }
    return ["fit", *(f"--{name}={value}" for name, value in options.items())]


def refused(command: list[str], capsys: pytest.CaptureFixture[str], *more: str) -> str:
    """Run a command that ends with one message."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        main([*command, *more])
    assert caught.value.code == 2
    printed = capsys.readouterr().err
    assert "Traceback" not in printed
    return printed[printed.index("error: ") :].strip()


def change(path: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    """Edit the content of a checkpoint."""
    found = load(path)
    edit(found)
    path.unlink()
    torch.save(found, path)


@contextmanager
def full_disk() -> Iterator[None]:
    """Limit files to half the size of a checkpoint."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.fixture
def no_room(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that makes the disk full when the given iterations are saved."""

    def at(*iterations: int) -> None:
        def limited(checkpoint: Any, path: Path) -> None:
            full = checkpoint["global_step"] in iterations
            with full_disk() if full else nullcontext():
                write_file(checkpoint, path)

        monkeypatch.setattr(io, "write_file", limited)

    return at


class Late(L.Callback):
    """Let threads write an iteration's checkpoint when the next iteration has ended.

    Attributes:
        written: The iterations that were written by a thread.
    """

    def __init__(self) -> None:
        self.written: list[int] = []
        self._step, self._ended = 0, threading.Condition()

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        with self._ended:
            self._step = trainer.global_step
            self._ended.notify_all()

    def write(self, checkpoint: Any, path: Path) -> None:
        step = checkpoint["global_step"]
        if threading.current_thread() is not threading.main_thread():
            with self._ended:
                assert self._ended.wait_for(lambda: self._step > step, 60)
            self.written.append(step)
        write_file(checkpoint, path)


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> Late:
    """Return a callback that makes threads write late."""
    callback = Late()
    monkeypatch.setattr(io, "write_file", callback.write)
    return callback


@pytest.fixture
def slow_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let threads begin to write half a second late."""

    def slowly(checkpoint: Any, path: Path) -> None:
        if threading.current_thread() is not threading.main_thread():
            time.sleep(0.5)
        write_file(checkpoint, path)

    monkeypatch.setattr(io, "write_file", slowly)
