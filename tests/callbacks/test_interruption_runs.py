"""SIGTERM, Ctrl-C and SLURM's signals, sent to real processes."""

import os
import pty
import select
import signal
import sys
import threading
import time
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest
import torch

from sid_lsg.cli import main
from tests.helpers import forked
from tests.helpers.runs import command, finish, rows, start, temporary, wait, workers

pytestmark = pytest.mark.slow


@pytest.fixture
def arguments(small_sd: str, tmp_path: Path) -> list[str]:
    """Return the arguments of a run without scores and without checkpoints on schedule."""
    return [
        *command(small_sd, tmp_path), "--metrics.every_n_images=0", "--health.every_n_images=0",
        "--metrics.clip=null", "--metrics.reference=null", "--checkpoint.every_n_steps=1000000",
        "--trainer.max_steps=1000000",
    ]  # fmt: skip


def saved_step(root: Path) -> int:
    return int(torch.load(root / "checkpoints/last.ckpt", weights_only=True)["global_step"])


def assert_saved(root: Path, said: str, name: str) -> int:
    """Check that the last logged iteration was saved and the run was not finished."""
    step = saved_step(root)
    assert [int(row["step"]) for row in rows(root)] == list(range(1, step + 1))
    expected = {".job", ".lock", "checkpoints", "config.yaml", "grids", "metrics.csv"}
    found = {path.name for path in root.iterdir()}
    # The first snapshot is due after iteration 5, unless the run ends there.
    assert found == expected | ({"ema_snapshots"} if step > 5 else found & {"ema_snapshots"})
    assert temporary(root) == []
    lines = [line for line in said.splitlines() if line.startswith("interrupted:")]
    path = root / f"checkpoints/{step:07d}.ckpt"
    assert lines == [
        f"interrupted: {name} after iteration {step}: the state is saved, {path}. Continue with "
        "the same command and --ckpt_path last."
    ]
    return step


@pytest.mark.parametrize(
    ("number", "name"),
    [(signal.SIGTERM, "SIGTERM"), (signal.SIGINT, "Ctrl-C"), (signal.SIGUSR1, "SIGUSR1"),
     (signal.SIGHUP, "SIGHUP (closed terminal)"), (signal.SIGUSR2, "SIGUSR2"),
     (signal.SIGXCPU, "SIGXCPU (limit of CPU time)")],
)  # fmt: skip
def test_a_signal_ends_a_run_between_iterations(
    arguments: list[str], tmp_path: Path, number: signal.Signals, name: str
) -> None:
    """The data workers receive the signal too, as they do from a scheduler or a terminal."""
    root = tmp_path / "run"
    processes = start(arguments, root, 1)
    wait(processes, root / "metrics.csv", 3)
    (pid,) = [process.pid for process in processes]
    assert pid
    for worker in workers(pid):
        os.kill(worker, number)
    time.sleep(0.5)
    assert processes[0].is_alive()  # the data workers ignore the signal
    os.kill(pid, number)
    said = finish(processes, root, 128 + number)
    step = assert_saved(root, said, name)
    said = finish(
        start([*arguments, "--ckpt_path=last", f"--trainer.max_steps={step + 1}"], root, 1), root
    )
    assert [int(row["step"]) for row in rows(root)] == list(range(1, step + 2))
    assert (root / "generator").is_dir()


def test_a_closed_terminal_ends_a_run_saved(arguments: list[str], tmp_path: Path) -> None:
    """Writing to the terminal fails from then on; the progress bar does in each iteration."""
    root, (master, slave) = tmp_path / "run", pty.openpty()
    shown = [a for a in arguments if "refresh_rate" not in a]
    line = [*shown, "--progress.refresh_rate=1", f"--trainer.default_root_dir={root}"]
    process = forked.start(in_terminal, os.ttyname(slave), line, log=tmp_path / "log")
    reader = threading.Thread(target=drain, args=(master, slave, root / "metrics.csv"), daemon=True)
    reader.start()
    process.join(60)
    process.kill()
    process.join()
    reader.join(10)
    assert process.exitcode == 128 + signal.SIGHUP, (tmp_path / "log").read_text()
    assert [int(row["step"]) for row in rows(root)] == list(range(1, saved_step(root) + 1))


def in_terminal(terminal: str, line: list[str]) -> None:
    """Run a command as the leader of a terminal's session."""
    os.setsid()
    descriptor = os.open(terminal, os.O_RDWR)  # becomes the controlling terminal
    for number in (0, 1, 2):
        os.dup2(descriptor, number)
    os.close(descriptor)
    sys.stdout.reconfigure(write_through=True)  # type: ignore[union-attr]
    main(line)


def drain(master: int, slave: int, metrics: Path) -> None:
    """Read what a terminal shows, and close it after three iterations."""
    while not metrics.exists() or len(metrics.read_text().splitlines()) < 4:
        if select.select([master], [], [], 0.1)[0]:
            os.read(master, 4096)
    os.close(slave)
    os.close(master)


def test_a_second_ctrl_c_ends_the_run_at_once(arguments: list[str], tmp_path: Path) -> None:
    root = tmp_path / "run"
    big = [a for a in arguments if "batch_size" not in a and "every_n_steps" not in a]
    big += ["--data.batch_size=256", "--model.micro_batch_size=256", "--checkpoint.every_n_steps=1"]
    processes = start(big, root, 1)  # its iterations take seconds
    wait(processes, root / "checkpoints", 2)
    assert processes[0].pid
    os.kill(processes[0].pid, signal.SIGINT)
    time.sleep(0.2)
    assert processes[0].is_alive()
    os.kill(processes[0].pid, signal.SIGINT)
    begin = time.perf_counter()
    said = finish(processes, root, 130)
    assert time.perf_counter() - begin < 1
    assert said.count("once more to end at once") == 1
    assert saved_step(root) >= 1


def test_two_processes_stop_after_the_same_iteration(arguments: list[str], tmp_path: Path) -> None:
    """Only the second process receives the signal; only the first one prints."""
    root = tmp_path / "run"
    processes = start(arguments, root, 2)
    wait(processes, root / "metrics.csv", 3)
    assert processes[1].pid
    os.kill(processes[1].pid, signal.SIGTERM)
    said = finish(processes, root, 143, 0)
    assert_saved(root, said, "SIGTERM")


def test_processes_launched_by_lightning_stop_too(arguments: list[str], tmp_path: Path) -> None:
    """A terminal signals all of them at once; the command returns the first one's status."""
    root, log = tmp_path / "run", tmp_path / "log"
    options = [
        "--trainer.devices=2",
        "--trainer.strategy=ddp",
        f"--trainer.default_root_dir={root}",
    ]
    run = forked.start(forked.launch, [*arguments, *options], log=log)
    while not rows(root):
        assert run.is_alive(), log.read_text()[-3000:]
        time.sleep(0.05)
    assert run.pid
    os.killpg(run.pid, signal.SIGINT)
    run.join(60)
    assert run.exitcode == 130
    assert "Traceback" not in log.read_text()
    assert_saved(root, log.read_text(), "Ctrl-C")


LATE = """
import os, time
if os.environ.get("LOCAL_RANK") == "1":
    open({!r}, "w").close()
    time.sleep(3)
"""


def test_a_signal_while_processes_connect_ends_the_run(
    arguments: list[str], tmp_path: Path
) -> None:
    """The first process cannot react while it waits; the other one has only begun to start."""
    root, log, began = tmp_path / "run", tmp_path / "log", tmp_path / "began"
    (tmp_path / "sitecustomize.py").write_text(LATE.format(str(began)))
    options = ["--trainer.devices=2", "--trainer.strategy=ddp_multi"]
    options += [f"--trainer.default_root_dir={root}"]
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    run = forked.start(
        forked.launch, [*arguments, *options], log=log, environment={"PYTHONPATH": path}
    )
    while not began.exists() or "GLOBAL_RANK: 0" not in log.read_text():
        assert run.is_alive()
        time.sleep(0.05)
    assert run.pid
    os.killpg(run.pid, signal.SIGTERM)
    run.join(120)
    assert run.exitcode == 143, log.read_text()[-3000:]
    end = log.read_text().splitlines()[-1]
    assert end.startswith("interrupted: SIGTERM. The same command begins or continues what was")
    assert not any(sign in log.read_text() for sign in ("Traceback", "frame #", "interrupted: \n"))


def test_slurm_requeues_a_job(arguments: list[str], tmp_path: Path) -> None:
    """SIGUSR1 announces the time limit: save, requeue and continue. SIGTERM ends the run."""
    root, log, calls = tmp_path / "run", tmp_path / "run.log", tmp_path / "calls"
    scontrol = tmp_path / "bin/scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {calls}\n')
    scontrol.chmod(0o755)
    common = {
        "PATH": f"{scontrol.parent}:{os.environ['PATH']}", "SLURM_JOB_ID": "17",
        "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_NNODES": "1",
        "SLURM_NODEID": "0", "SLURM_NODELIST": "localhost",
        "MASTER_PORT": str(forked.free_port()),
    }  # fmt: skip
    options = ["--trainer.devices=2", "--trainer.strategy=ddp_multi"]
    options += [f"--trainer.default_root_dir={root}"]

    def job(*more: str, **environment: str) -> list[ForkServerProcess]:
        """Start the tasks as srun does."""
        started = []
        for rank in ("0", "1"):
            task = common | environment | {"SLURM_PROCID": rank, "SLURM_LOCALID": rank}
            line = [*arguments, *options, *more]
            started.append(forked.start(main, line, log=log, environment=task))
        return started

    def send(processes: list[ForkServerProcess], number: signal.Signals) -> None:
        for process in processes:
            assert process.pid
            os.kill(process.pid, number)

    processes = job()
    wait(processes, root / "metrics.csv", 2)
    send(processes, signal.SIGUSR1)
    wait(processes, calls, 1)
    saved = saved_step(root)
    assert saved >= 2
    wait(processes, root / "metrics.csv", 2)
    send(processes, signal.SIGTERM)
    said = finish(processes, root, 143, 143)
    assert calls.read_text() == "requeue 17\n"
    step = assert_saved(root, said, "SIGTERM")
    assert step > saved
    finish(job(f"--trainer.max_steps={step + 1}", SLURM_RESTART_COUNT="1"), root)
    assert [int(row["step"]) for row in rows(root)] == list(range(1, step + 2))


def test_a_signal_during_the_setup_ends_the_run_at_once(
    arguments: list[str], tmp_path: Path
) -> None:
    root = tmp_path / "run"
    processes = start(arguments, root, 1)
    wait(processes, root / "config.yaml", 1)
    assert processes[0].pid
    os.kill(processes[0].pid, signal.SIGTERM)
    said = finish(processes, root, 143)
    assert said.count("interrupted: SIGTERM") == 1
    assert not (root / "checkpoints/last.ckpt").exists() or saved_step(root)
