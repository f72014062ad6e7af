"""Runs that are killed at random moments and continued are the run that never was.

`SOAK=20 pytest tests/training/test_soak.py` kills so many times; the suite does it four times.
"""

import csv
import json
import os
import random
import time
from collections.abc import Iterator
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest
import torch

from sid_lsg.checkpoints.io import SafeCheckpointIO
from sid_lsg.cli import main
from tests.helpers import forked
from tests.helpers.forked import ranks

KILLS = int(os.environ.get("SOAK", "4"))
MEASURED = ("images_per_s", "peak_memory_gib")  # differ from run to run
WATCHED = ("metrics.csv", "grids", "checkpoints")
SEED = 1


def command(small_sd: str, folder: Path) -> list[str]:
    """Return a command with everything on."""
    prompts = folder / "prompts.txt"
    prompts.write_text("a red cat\ntwo dogs\na blue bird\nthe moon\nan old book")
    options = {
        "model.teacher": small_sd,
        "model.micro_batch_size": 1,
        "model.optimizer_fake.init_args.lr": 1e-3,
        "model.optimizer_generator.init_args.lr": 1e-3,
        "data.prompts": prompts,
        "data.batch_size": 4,
        "data.num_workers": 1,
        "trainer.accelerator": "cpu",
        "trainer.log_every_n_steps": 1,
        "progress.refresh_rate": 0,
        "checkpoint.every_n_steps": 3,
        "checkpoint.keep": 2,
        "image_grid.every_n_steps": 5,
        "image_grid.num_images": 2,
        "metrics.clip": "package:demo/fashion/clip",
        "metrics.protocol": "clip",
        "metrics.reference": "package:demo/fashion/reference.safetensors",
        "metrics.every_n_images": 8,
        "metrics.num_images": 6,
        "metrics.batch_size": 3,
        "metrics.teacher_steps": 1,
        "metrics.num_pictured": 2,
        "health.every_n_images": 12,
        "health.num_prompts": 4,
        "health.num_seeds": 2,
        "health.teacher_steps": 1,
    }
    return ["fit", *(f"--{name}={value}" for name, value in options.items())]


def start(
    arguments: list[str], root: Path, processes: int, strategy: str = "ddp_multi"
) -> list[ForkServerProcess]:
    """Start the command; with several processes, as torchrun and its like would."""
    arguments = [*arguments, f"--trainer.default_root_dir={root}"]
    if processes > 1:
        arguments += [f"--trainer.strategy={strategy}", f"--trainer.devices={processes}"]
    log = root.with_suffix(".log")
    log.unlink(missing_ok=True)  # where a killed run's orphans may still complain
    return [forked.start(main, arguments, log=log, environment=e) for e in ranks(processes)]


def finish(processes: list[ForkServerProcess], root: Path, *statuses: int) -> str:
    """Wait for the processes to end with these statuses, by default 0; return what they said."""
    for process in processes:
        process.join(300)
    log = root.with_suffix(".log").read_text()
    expected = list(statuses) or [0] * len(processes)
    assert [process.exitcode for process in processes] == expected, log[-3000:]
    assert "Traceback" not in log
    return log


def changes(path: Path, processes: list[ForkServerProcess]) -> Iterator[None]:
    """Wait for one change of a file or folder after another, until the run ends."""

    def state() -> tuple[int, int]:
        found = path.stat() if path.exists() else None
        return (found.st_mtime_ns, found.st_ino) if found else (0, 0)

    before = state()
    while all(process.is_alive() for process in processes):
        if (now := state()) != before:
            before = now
            yield
        time.sleep(0.001)


def killed(processes: list[ForkServerProcess], root: Path, chance: random.Random) -> bool:
    """Kill a run when it has made some progress; tell whether it had not ended before."""
    watched, count = chance.choice(WATCHED), chance.randint(1, 5)
    delay = chance.choice((0, 0.02, 0.3)) * chance.random()  # at once, within a step, or a while
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


def rows(root: Path) -> list[dict[str, str]]:
    """Read what the log says of each iteration, where that is not measured."""
    if not (root / "metrics.csv").exists():
        return []
    with (root / "metrics.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    return [{name: v for name, v in row.items() if name not in MEASURED} for row in found]


def temporary(root: Path) -> list[str]:
    return [str(path.relative_to(root)) for path in root.rglob("*") if "tmp" in path.name]


def same(ours: Any, theirs: Any) -> bool:
    """Compare what a checkpoint holds, tensors bit by bit."""
    if isinstance(ours, torch.Tensor):
        return torch.equal(ours, theirs)
    if isinstance(ours, dict):
        return ours.keys() == theirs.keys() and all(same(ours[k], theirs[k]) for k in ours)
    if isinstance(ours, list | tuple):
        return len(ours) == len(theirs) and all(map(same, ours, theirs))
    return bool(ours == theirs)


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
def test_a_killed_run_ends_as_if_nothing_had_been(
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
    assert count > kills * 0.7  # rather than ended, on a machine that is slow in waking this one
    finish(start([*arguments, "--ckpt_path=last"], root, processes, strategy), root)
    if processes == 1:
        finish(undisturbed, expected)
    print(f"{count} kills, {steps} iterations: {time.perf_counter() - begin:.0f} s")
    assert_equal(root, expected, steps)
