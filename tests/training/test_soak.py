"""Runs that are killed at random moments and continued equal an undisturbed run.

`SOAK=20 pytest tests/training/test_soak.py` kills a run 20 times; by default 4 times.
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
from tests.helpers.runs import changes, command, finish, rows, start, temporary

pytestmark = pytest.mark.slow

KILLS = int(os.environ.get("SOAK", "4"))
WATCHED = ("metrics.csv", "grids", "checkpoints")
SEED = 1


def killed(processes: list[ForkServerProcess], root: Path, chance: random.Random) -> bool:
    """Kill a run after some progress; return False if it had already ended."""
    watched, count = chance.choice(WATCHED), chance.randint(1, 5)
    delay = chance.choice((0, 0.02, 0.3)) * chance.random()  # at once, within a step, or later
    for _ in zip(changes(root / watched, processes), range(count), strict=False):
        pass
    time.sleep(delay)
    alive = all(process.is_alive() for process in processes)
    for process in processes:
        process.kill()
        process.join()
    last = root / "checkpoints/last.ckpt"
    where = last.resolve().name if last.exists() else None
    where = f"{len(rows(root))} rows, last.ckpt: {where}, temporary: {temporary(root)}"
    print(f"{count} changes of {watched} and {delay:.3f} s: {where}")
    return alive


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

    for folder in ("generator", "grids"):
        for path in (expected / folder).rglob("*"):
            ours_path = root / path.relative_to(expected)
            assert path.is_dir() or ours_path.read_bytes() == path.read_bytes(), path
    assert sorted(p.name for p in root.iterdir()) == sorted(p.name for p in expected.iterdir())
    assert temporary(root) == temporary(expected) == []
    for folder in ("checkpoints", "generator", "grids"):
        names = [{p.relative_to(r / folder) for p in (r / folder).rglob("*")}
                 for r in (root, expected)]  # fmt: skip
        assert names[0] == names[1]

    ours, theirs = (json.loads((r / "summary.json").read_text()) for r in (root, expected))
    seconds = [name for name in theirs if name.endswith("seconds") or "seconds_per" in name]
    assert {**ours, **dict.fromkeys(seconds)} == {**theirs, **dict.fromkeys(seconds)}


@pytest.mark.parametrize(
    ("processes", "kills", "strategy"),
    [(1, KILLS, "auto"), (2, 1 + KILLS // 10, "fsdp2_sharded")]
    + [(2, KILLS // 10, "ddp_multi")] * (KILLS >= 10),
)
def test_a_killed_run_ends_like_an_undisturbed_one(
    small_sd: str, tmp_path: Path, processes: int, kills: int, strategy: str
) -> None:
    steps = 4 * kills + 8
    arguments = [*command(small_sd, tmp_path), f"--trainer.max_steps={steps}"]
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
