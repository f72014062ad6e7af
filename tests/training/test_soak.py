"""Runs that are killed at random moments and continued equal an undisturbed run.

Grids, scores, exports and health checks are on. The killed processes leave none behind. From 10
kills on, two processes also log to W&B (offline).

`SOAK=120 pytest tests/training/test_soak.py` kills runs 120, 40 and 40 times; by default 4 and 1.
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

KILLS = int(os.environ.get("SOAK", "4"))
WATCHED = ("metrics.csv", "grids", "generators", "checkpoints")
SEED = 1


def killed(processes: list[ForkServerProcess], root: Path, chance: random.Random) -> bool:
    """Kill a run after some progress; return False if it had already ended."""
    watched, count = chance.choice(WATCHED), chance.randint(1, 5)
    delay = chance.choice((0, 0.02, 0.3)) * chance.random()  # at once, within a step, or later
    for _ in zip(changes(root / watched, processes), range(count), strict=False):
        pass
    time.sleep(delay)
    alive = all(process.is_alive() for process in processes)
    left = [pid for process in processes if process.pid for pid in below(process.pid)]
    for process in processes:
        process.kill()
        process.join()
    check_gone(left)
    last = root / "checkpoints/last.ckpt"
    where = last.resolve().name if last.exists() else None
    where = f"{len(rows(root))} rows, last.ckpt: {where}, temporary: {temporary(root)}"
    print(f"{count} changes of {watched} and {delay:.3f} s: {where}")
    return alive


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
    [(1, KILLS, "auto"), (2, max(1, KILLS // 3), "fsdp2_sharded")]
    + [(2, KILLS // 3, "ddp_multi")] * (KILLS >= 10),
)
def test_a_killed_run_ends_like_an_undisturbed_one(
    small_sd: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    processes: int,
    kills: int,
    strategy: str,
) -> None:
    steps = 4 * kills + 8
    arguments = [*command(small_sd, tmp_path), f"--trainer.max_steps={steps}"]
    arguments.append("--export.every_n_steps=7")
    if processes > 1 and KILLS >= 10:
        arguments.append("--trainer.logger=[CSVLogger,WandbLogger]")
        monkeypatch.setenv("WANDB_MODE", "offline")
    expected, root, chance = tmp_path / "expected", tmp_path / "killed", random.Random(SEED)
    begin = time.perf_counter()
    undisturbed = start(arguments, expected, processes, strategy)
    if processes > 1:
        finish(undisturbed, expected)  # this machine has two cores
    count = 0
    for _ in range(kills):
        continues = ["--ckpt_path=last"] if (root / "config.yaml").exists() else []
        count += killed(start([*arguments, *continues], root, processes, strategy), root, chance)
    assert count > kills * 0.7  # a slow machine may let some runs end before they are killed
    finish(start([*arguments, "--ckpt_path=last"], root, processes, strategy), root)
    if processes == 1:
        finish(undisturbed, expected)
    print(f"{count} kills, {steps} iterations: {time.perf_counter() - begin:.0f} s")
    assert_equal(root, expected, steps)
