"""The batch file for SLURM, run with stand-ins for SLURM's programs."""

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from tests.helpers import forked
from tests.helpers.interpreter import interpreter
from tests.helpers.paths import CONFIGS, REPOSITORY
from tests.helpers.runs import command, rows

SBATCH = CONFIGS / "slurm" / "multinode.sbatch"

# As srun does, it starts the tasks of all nodes and returns the worst status.
SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do shift; done
for node in $(seq 0 $((SLURM_NNODES - 1))); do
  SLURM_PROCID=$node SLURM_NODEID=$node SLURM_LOCALID=0 "$@" &
  echo $! >> tasks
done
worst=0
for task in $(jobs -p); do
  wait $task && status=0 || status=$?
  ((status > worst)) && worst=$status
done
exit $worst
"""


def directives() -> dict[str, str]:
    """Return the options that sbatch reads from the file; a flag has the value ''."""
    lines = SBATCH.read_text().splitlines()
    # sbatch stops at the first command.
    end = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    assert not any(line.startswith("#SBATCH") for line in lines[end:])
    found = {}
    for line in lines[:end]:
        if match := re.fullmatch(r"#SBATCH --([a-z-]+)(?:=(\S+))?", line):
            found[match[1]] = match[2] or ""
        else:
            assert not line.startswith("#SBATCH")
    return found


def program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def test_directives_ask_for_what_the_config_uses() -> None:
    asked = directives()
    trainer = yaml.safe_load((CONFIGS / "trainer/multinode.yaml").read_text())["trainer"]
    assert int(asked["nodes"]) == trainer["num_nodes"]
    assert asked["ntasks-per-node"] == asked["gpus-per-node"] == str(trainer["devices"])
    assert {"requeue", "time"} <= {*asked}
    assert asked["signal"].startswith("USR1@")  # to the tasks; B: would be the shell alone
    assert asked["open-mode"] == "append"  # a requeued job keeps its log


def test_the_command_line_is_that_of_fit(tmp_path: Path) -> None:
    """The options that follow the file's name come last, so they have the last word."""
    program(tmp_path / "srun", '#!/bin/bash\nprintf "%s\\n" "$@"\n')
    ended = subprocess.run(
        ["bash", SBATCH, "--data.prompts", "my prompts.txt"], text=True, capture_output=True,
        check=True, env={
            "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_NUM_NODES": "4",
            "SLURM_NTASKS_PER_NODE": "8",
        },
    )  # fmt: skip
    line = ended.stdout.splitlines()
    assert line[:3] == ["--kill-on-bad-exit=1", "sid-lsg", "fit"]
    options = dict(zip(line[3::2], line[4::2], strict=True))
    assert (options["--trainer.num_nodes"], options["--trainer.devices"]) == ("4", "8")
    assert line[-2:] == ["--data.prompts", "my prompts.txt"]


@pytest.mark.slow
def test_a_job_on_two_nodes_is_requeued_and_continues(small_sd: str, tmp_path: Path) -> None:
    """Two tasks with a device each, on this machine."""
    programs = tmp_path / "bin"
    programs.mkdir()
    program(programs / "srun", SRUN)
    program(programs / "scontrol", '#!/bin/sh\necho "$@" >> calls\n')
    program(programs / "sid-lsg", f'#!/bin/sh\nexec {interpreter()} -m sid_lsg "$@"\n')
    environment = os.environ | {
        "PATH": f"{programs}:{os.environ['PATH']}", "PYTHONPATH": str(REPOSITORY),
        "OMP_NUM_THREADS": "1", "MASTER_PORT": str(forked.free_port()),
        "SLURM_JOB_ID": "17", "SLURM_JOB_NUM_NODES": "2", "SLURM_NNODES": "2",
        "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "1", "SLURM_NODELIST": "localhost",
    }  # fmt: skip
    _, *options = command(small_sd, tmp_path)
    options += [
        "--model.resolution=64", "--trainer.precision=32-true", "--trainer.default_root_dir=run",
        "--trainer.logger=sid_lsg.loggers.CSVLogger", "--data.num_heldout=0",
        "--metrics.every_n_images=0", "--metrics.clip=null", "--metrics.reference=null",
        "--health.every_n_images=0",
    ]  # fmt: skip
    root, log = tmp_path / "run", tmp_path / "job.log"

    def job(*more: str, **variables: str) -> subprocess.Popen[bytes]:
        with log.open("ab") as file:
            return subprocess.Popen(
                ["bash", SBATCH, *options, *more], cwd=tmp_path, env=environment | variables,
                stdout=file, stderr=file, start_new_session=True,
            )  # fmt: skip

    def until(running: subprocess.Popen[bytes], steps: int) -> None:
        while len(rows(root)) < steps:
            assert running.poll() is None, log.read_text()[-3000:]
            time.sleep(0.05)

    def send(number: signal.Signals) -> None:
        for task in (tmp_path / "tasks").read_text().split():
            os.kill(int(task), number)

    first = job()
    try:
        until(first, 2)
        send(signal.SIGUSR1)  # the time is nearly up
        while not (tmp_path / "calls").exists():
            assert first.poll() is None, log.read_text()[-3000:]
            time.sleep(0.05)
        send(signal.SIGTERM)  # SLURM takes the job away
        assert first.wait(120) == 143, log.read_text()[-3000:]
        assert (tmp_path / "calls").read_text() == "requeue 17\n"
        step = len(rows(root))
        again = job(f"--trainer.max_steps={step + 1}", SLURM_RESTART_COUNT="1")
        assert again.wait(300) == 0, log.read_text()[-3000:]
    finally:
        if first.poll() is None:
            os.killpg(first.pid, signal.SIGKILL)
    assert [int(row["step"]) for row in rows(root)] == list(range(1, step + 2))
    assert (root / "generator" / "model_index.json").is_file()
