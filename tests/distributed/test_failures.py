"""A failure of one process ends all processes of a run soon, with one message."""

import os
import signal
import socket
import time
from collections.abc import Callable
from multiprocessing import connection
from pathlib import Path
from typing import Any

import pytest

from sid_lsg.checkpoints import io
from sid_lsg.cli import main
from sid_lsg.distributed import failures, processes
from sid_lsg.generation import image_files
from sid_lsg.training.module import SiDLSG
from tests.helpers import forked
from tests.helpers.checkpoint_runs import load
from tests.helpers.runs import command

SECONDS = 30  # processes wait for each other for half an hour


def fail_at(step: int, rank: int, kind: Callable[[], Any], line: list[str]) -> None:
    """Train; in one rank the iteration after `step` fails, while the checkpoint is written."""
    original: Any = SiDLSG.phase_inputs
    write = io.write_file

    def slowly(content: Any, path: Path) -> None:
        time.sleep(3)
        write(content, path)

    io.write_file = slowly

    def phase_inputs(module: SiDLSG, *arguments: Any) -> Any:
        if module.global_rank == rank and module.trainer.global_step == step:
            kind()
        return original(module, *arguments)

    SiDLSG.phase_inputs = phase_inputs  # type: ignore[assignment,method-assign]
    main(line)


def fail_sampling(rank: int, kind: Callable[[], Any], line: list[str]) -> None:
    """Generate images; one rank fails, while the other is busy for long."""

    def sampled(*_: Any) -> Any:
        if processes.process()[0] == rank:
            time.sleep(2)  # the others have begun to watch
            kind()
        time.sleep(10 * SECONDS)

    image_files.share_of = sampled  # type: ignore[attr-defined]
    main(line)


def error() -> None:
    raise RuntimeError("this card has fallen off the bus")


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture
def line(small_sd: str, tmp_path: Path) -> list[str]:
    plain = [a for a in command(small_sd, tmp_path) if "metrics." not in a and "health." not in a]
    root = tmp_path / "run"
    more = ["trainer.max_steps=50", "trainer.strategy=ddp_multi", "trainer.devices=2"]
    more += [f"trainer.default_root_dir={root}", "image_grid.every_n_steps=0"]
    more += ["checkpoint.every_n_steps=2"]
    return [*plain, *(f"--{option}" for option in more)]


def run(jobs: list[tuple[Any, ...]], log: Path) -> tuple[list[int | None], str]:
    """Call functions in one process each; return statuses and log. All end soon after the first."""
    started = [
        forked.start(*job, log=log, environment=environment)
        for job, environment in zip(jobs, forked.ranks(2), strict=True)
    ]
    connection.wait([process.sentinel for process in started], 300)
    for process in started:
        process.join(SECONDS / len(started))
    alive = [process.is_alive() for process in started]
    for process in started:
        process.kill()
        process.join()
    assert alive == [False, False], log.read_text()
    return [process.exitcode for process in started], log.read_text()


@pytest.mark.parametrize(
    ("option", "rank"), [("data.prompts", 1), ("model.teacher", 0), ("config", 1)]
)
@pytest.mark.slow
def test_a_file_that_one_process_misses_ends_all_of_them(
    line: list[str], tmp_path: Path, option: str, rank: int
) -> None:
    lines = [line, line]
    lines[rank] = [*line, f"--{option}={tmp_path / 'missing'}"]
    statuses, said = run([(main, line) for line in lines], tmp_path / "log")
    assert statuses == [2, 2], said
    assert said.count("error: ") == 1
    assert f"error: --{option}" in said
    assert "missing" in said
    assert not any(sign in said for sign in ("Traceback", "frame #")), said
    assert not (tmp_path / "run").exists()  # the others wait before they write


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "rank"), [(error, 1), (killed, 0), (killed, 1)])
def test_an_error_of_one_process_in_the_training_ends_all_of_them(
    line: list[str], tmp_path: Path, kind: Callable[[], Any], rank: int
) -> None:
    statuses, said = run([(fail_at, 2, rank, kind, line)] * 2, tmp_path / "log")
    assert statuses[rank] == (1 if kind is error else -9), said
    assert statuses[1 - rank] == 1, said
    assert said.count("Traceback") == 1, said
    assert kind is killed or "RuntimeError: this card has fallen off the bus" in said
    last = tmp_path / "run/checkpoints/last.ckpt"  # the first process writes
    assert last.exists() == (rank != 0)
    assert rank == 0 or load(last)["global_step"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_an_error_of_one_process_that_samples_ends_all_of_them(
    small_sd: str, tmp_path: Path, rank: int
) -> None:
    line = ["generate", "--model", small_sd, "--prompt", "a cat", "--seeds", "0-3"]
    line += ["--sampler", "ddim", "--num_steps", "1", "--guidance", "1", "--accelerator", "cpu"]
    line += ["--devices", "2", "--output", str(tmp_path / "images")]
    statuses, said = run([(fail_sampling, rank, error, line)] * 2, tmp_path / "log")
    assert statuses == [1, 1], said
    assert said.count("Traceback") == 1, said


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_file_that_one_process_misses_ends_all_that_would_sample(
    small_sd: str, tmp_path: Path, rank: int
) -> None:
    (tmp_path / "prompts").write_text("a cat\na dog\n")
    line = ["generate", "--model", small_sd, "--devices", "2", "--accelerator", "cpu"]
    line += ["--output", str(tmp_path / "images"), "--prompts"]
    lines = [[*line, str(tmp_path / ("missing" if own == rank else "prompts"))] for own in (0, 1)]
    statuses, said = run([(main, line) for line in lines], tmp_path / "log")
    assert statuses == [2, 2], said
    assert said.count("error: ") == 1
    assert "error: --prompts" in said
    assert not (tmp_path / "images").exists()


def impatient(line: list[str]) -> None:
    failures._LIMIT = 1.0
    main(line)


@pytest.mark.slow
def test_a_port_in_use_ends_the_run(line: list[str], tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("0.0.0.0", 0))
        other.listen()
        port = str(other.getsockname()[1])
        environment = forked.ranks(2)[0] | {"MASTER_PORT": port}
        process = forked.start(impatient, line, log=tmp_path / "log", environment=environment)
        process.join(120)
    said = (tmp_path / "log").read_text()
    assert process.exitcode == 2, said
    assert f"error: the processes cannot connect: port {port} of 127.0.0.1 is in use" in said
    assert "MASTER_PORT" in said


@pytest.mark.parametrize("together", [True, False])
def test_steps_of_one_slurm_job_do_not_share_failures(
    monkeypatch: pytest.MonkeyPatch, together: bool
) -> None:
    """Lightning gives all steps of a job on a node the same port."""
    given = {"JOB_ID": "1", "JOB_NAME": "x", "NTASKS": "2", "NTASKS_PER_NODE": "2", "NODEID": "0"}
    given |= {"LOCALID": "0", "NODELIST": "localhost", "JOB_NODELIST": "localhost"}
    for name, value in given.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setenv("MASTER_PORT", str(forked.free_port()))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    found = list[failures._Watch]()
    for rank, step in ((0, "0"), (1, "0" if together else "1")):
        monkeypatch.setenv("SLURM_PROCID", str(rank))
        monkeypatch.setenv("SLURM_STEP_ID", step)
        place = failures._place()
        assert place is not None
        assert place.hosts == (rank == 0)
        found.append(failures._Watch(place))
    first, second = found
    second._connect()
    second.claim(SystemExit(2))
    assert first._keys.check(["failure"]) == together
