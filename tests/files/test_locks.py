"""Only one process at a time writes to a folder."""

import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from jsonargparse import Namespace

from sid_lsg.files import locks
from sid_lsg.files.locks import check_free, held
from sid_lsg.messages.errors import UsageError
from sid_lsg.training.run_directory import check_files
from tests.helpers.runs import command, finish, rows, start, wait, workers

_REFUSED = "--output: in use."
_HOLD = """
import sys
from pathlib import Path
from sid_lsg.files.locks import held

with held(Path(sys.argv[1]), "in use"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_held_folder_is_rejected_in_another_process(tmp_path: Path) -> None:
    check_free(tmp_path, _REFUSED)
    assert [*tmp_path.iterdir()] == []
    line, pipe = [sys.executable, "-c", _HOLD, str(tmp_path)], subprocess.PIPE
    with subprocess.Popen(line, stdin=pipe, stdout=pipe) as process:
        assert process.stdout
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(UsageError, match=_REFUSED), held(tmp_path, _REFUSED):
            pass
        with pytest.raises(UsageError, match=_REFUSED):
            check_free(tmp_path, _REFUSED)
        process.kill()
        process.wait()
        check_free(tmp_path, _REFUSED)
    with held(tmp_path, _REFUSED):
        pass


def test_a_lock_of_another_machine_is_tried_for_minutes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A file server keeps the lock of a machine that has died for some time."""
    monkeypatch.setattr(locks, "_PATIENCE", 0.5)
    monkeypatch.setattr(locks, "_PERIOD", 0.1)
    line, pipe = [sys.executable, "-c", _HOLD, str(tmp_path)], subprocess.PIPE
    with subprocess.Popen(line, stdin=pipe, stdout=pipe) as process:
        assert process.stdout
        assert process.stdout.readline() == b"held\n"
        file = tmp_path / ".lock"
        assert file.read_text() == f"{socket.gethostname()} {process.pid}\n"
        with pytest.raises(UsageError, match=f"in use. '{file}' is held by process {process.pid}"):
            check_free(tmp_path, _REFUSED)
        assert capfd.readouterr().err == ""
        file.write_text("node7 42\n")
        with pytest.raises(UsageError, match=f"'{file}' is held by process 42 on node7"):
            check_free(tmp_path, _REFUSED)
        assert capfd.readouterr().err.count("waiting up to 3 minutes for node7") == 1
        monkeypatch.setattr(locks, "_PATIENCE", 60)
        threading.Timer(0.3, process.kill).start()
        with held(tmp_path, _REFUSED):
            assert file.read_text() == f"{socket.gethostname()} {os.getpid()}\n"


def test_file_systems_without_locks_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lock(*_: object) -> None:
        raise OSError(95, os.strerror(95))

    monkeypatch.setattr("fcntl.lockf", lock)
    with held(tmp_path, _REFUSED):
        check_free(tmp_path, _REFUSED)


def test_a_lock_that_cannot_be_opened_names_its_option(tmp_path: Path) -> None:
    (tmp_path / ".lock").mkdir()
    trainer = SimpleNamespace(default_root_dir=str(tmp_path))
    with pytest.raises(UsageError, match=r"--trainer.default_root_dir: cannot write .*directory"):
        check_files(Namespace(trainer=trainer, ckpt_path=None))


@pytest.mark.slow
@pytest.mark.parametrize("continued", [False, True])
def test_a_second_run_does_not_disturb_a_running_one(
    small_sd: str, tmp_path: Path, continued: bool
) -> None:
    """The first run, killed while its data workers live on, can be continued at once."""
    arguments = [*command(small_sd, tmp_path), "--checkpoint.every_n_steps=1"]
    root = tmp_path / "run"
    first = start([*arguments, "--trainer.max_steps=1000000"], root, 1)
    wait(first, root / "checkpoints", 2)
    log = root.with_suffix(".log").rename(tmp_path / "first.log")
    more = ["--ckpt_path=last"] if continued else []
    said = finish(start([*arguments, *more], root, 1), root, 2)
    assert f"--trainer.default_root_dir: another run is writing to '{root}'" in said
    wait(first, root / "checkpoints", 2)
    assert not root.with_suffix(".1").exists()

    (pid,) = (process.pid for process in first)
    assert pid
    left = workers(pid)
    assert left
    for worker in left:
        os.kill(worker, signal.SIGSTOP)  # otherwise they end within seconds
    first[0].kill()
    first[0].join()
    try:
        step = torch.load(root / "checkpoints/last.ckpt", weights_only=True)["global_step"]
        end = [f"--trainer.max_steps={step + 1}", "--ckpt_path=last"]
        finish(start([*arguments, *end], root, 1), root)
    finally:
        for worker in left:
            os.kill(worker, signal.SIGKILL)
    assert int(rows(root)[-1]["step"]) == step + 1
    assert "Traceback" not in log.read_text()
