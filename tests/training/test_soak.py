"""Runs that are killed at random moments and continued equal an undisturbed run.

Grids, scores, exports and health checks are on, and with two processes W&B (offline). The killed
processes leave none behind.

`make test` kills runs of two processes 20 times, and one of a single process 4 times.
`SOAK=200 pytest tests/training/test_soak.py` kills them 200 and 40 times.
"""

import json
import os
import random
import time
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest

from sid_lsg.checkpoints.io import SafeCheckpointIO
from tests.helpers.comparison import same
from tests.helpers.runs import changes, command, finish, rows, start, temporary, workers

pytestmark = pytest.mark.slow

KILLS = int(os.environ.get("SOAK", "20"))
WATCHED = ("metrics.csv", "grids", "generators", "checkpoints")


def kill(processes: list[ForkServerProcess], root: Path, chance: random.Random) -> None:
    """Kill a run after some progress."""
    watched, count = chance.choice(WATCHED), chance.randint(1, 3)
    delay = chance.choice((0, 0.02, 0.3)) * chance.random()  # at once, within a step, or later
    for _ in zip(changes(root / watched, processes), range(count), strict=False):
        pass
    time.sleep(delay)
    assert all(process.is_alive() for process in processes), root.with_suffix(".log").read_text()
    left = [pid for process in processes if process.pid for pid in below(process.pid)]
    for process in processes:
        process.kill()
        process.join()
    check_gone(left)
    last = root / "checkpoints/last.ckpt"
    where = last.resolve().name if last.exists() else None
    where = f"{len(rows(root))} rows, last.ckpt: {where}, temporary: {temporary(root)}"
    print(f"{count} changes of {watched} and {delay:.3f} s: {where}")


def below(pid: int) -> list[int]:
    """Return the processes that a process has started, such as its data workers."""
    try:
        return [found for child in workers(pid) for found in (child, *below(child))]
    except OSError:  # it has ended
        return []


def check_gone(pids: list[int], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while running := [pid for pid in pids if is_running(pid)]:
        assert time.monotonic() < end, running
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def assert_equal(root: Path, expected: Path, steps: int) -> None:
    read = SafeCheckpointIO().load_checkpoint
    ours, theirs = (read(folder / "checkpoints/last.ckpt") for folder in (root, expected))
    assert ours["global_step"] == theirs["global_step"] == steps
    for part in ("state_dict", "optimizer_states", "lr_schedulers"):
        assert same(ours[part], theirs[part]), part

    table = rows(expected)
    assert [int(row["step"]) for row in table] == list(range(1, steps + 1))
    assert rows(root) == table
    assert (root / "metrics.csv").read_bytes().endswith(b"\n")

    for folder in ("generator", "generators", "grids", "ema_snapshots"):
        for path in (expected / folder).rglob("*"):
            ours_path = root / path.relative_to(expected)
            assert path.is_dir() or ours_path.read_bytes() == path.read_bytes(), path
    assert sorted(p.name for p in root.iterdir()) == sorted(p.name for p in expected.iterdir())
    for folder in (root, expected):  # W&B keeps temporary files of its own
        assert [name for name in temporary(folder) if not name.startswith("wandb")] == []
    for folder in ("checkpoints", "generator", "generators", "grids", "ema_snapshots"):
        names = [{p.relative_to(r / folder) for p in (r / folder).rglob("*")}
                 for r in (root, expected)]  # fmt: skip
        assert names[0] == names[1]

    ours, theirs = (json.loads((r / "summary.json").read_text()) for r in (root, expected))
    seconds = [name for name in theirs if name.endswith("seconds") or "seconds_per" in name]
    assert {**ours, **dict.fromkeys(seconds)} == {**theirs, **dict.fromkeys(seconds)}


@pytest.mark.parametrize(
    ("processes", "kills", "strategy"),
    [(1, KILLS // 5, "auto"), (2, KILLS // 2, "fsdp2_sharded"), (2, KILLS // 2, "ddp_multi")],
)
def test_a_killed_run_ends_like_an_undisturbed_one(
    small_sd: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    processes: int,
    kills: int,
    strategy: str,
) -> None:
    arguments = [*command(small_sd, tmp_path), "--export.every_n_steps=7"]
    if processes > 1:
        arguments.append("--trainer.logger=[CSVLogger,WandbLogger]")
        monkeypatch.setenv("WANDB_MODE", "offline")
    root, expected, chance = tmp_path / "killed", tmp_path / "expected", random.Random(strategy)

    def begin(root: Path, steps: int) -> list[ForkServerProcess]:
        continues = ["--ckpt_path=last"] * (root / "config.yaml").exists()
        line = [*arguments, f"--trainer.max_steps={steps}", *continues]
        return start(line, root, processes, strategy)

    for _ in range(kills):
        kill(begin(root, 1_000_000), root, chance)
    steps = len(rows(root)) + 2
    for folder in (root, expected):
        finish(begin(folder, steps), folder)
    assert_equal(root, expected, steps)
