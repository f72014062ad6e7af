"""Start, watch and finish training runs in real processes, and read their logs."""

import csv
import time
from collections.abc import Iterator
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from sid_lsg.cli import main
from tests.helpers import forked
from tests.helpers.forked import ranks

MEASURED = ("images_per_s", "peak_memory_gib")  # differ from run to run


def command(small_sd: str, folder: Path) -> list[str]:
    """Return a `fit` command with checkpoints, grids, metrics and health checks."""
    prompts = folder / "prompts.txt"
    prompts.write_text("a red cat\ntwo dogs\na blue bird\nthe moon\nan old book")
    options = {
        "model.teacher": small_sd,
        "model.micro_batch_size": 1,
        "model.optimizer_fake.init_args.lr": 1e-3,
        "model.optimizer_generator.init_args.lr": 1e-3,
        "model.ema.snapshot_images": 20,
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
    """Start the command; start several processes as torchrun does."""
    arguments = [*arguments, f"--trainer.default_root_dir={root}"]
    if processes > 1:
        arguments += [f"--trainer.strategy={strategy}", f"--trainer.devices={processes}"]
    log = root.with_suffix(".log")
    log.unlink(missing_ok=True)  # orphans of a killed run may still write to it
    return [forked.start(main, arguments, log=log, environment=e) for e in ranks(processes)]


def finish(processes: list[ForkServerProcess], root: Path, *statuses: int) -> str:
    """Wait for the processes to exit with the given statuses, by default 0; return their log."""
    for process in processes:
        process.join(300)
        process.kill()  # if it does not end: it would go on when the tests have ended
    log = root.with_suffix(".log").read_text()
    expected = list(statuses) or [0] * len(processes)
    assert [process.exitcode for process in processes] == expected, log[-3000:]
    assert "Traceback" not in log
    return log


def changes(path: Path, processes: list[ForkServerProcess]) -> Iterator[None]:
    """Yield at each change of a file or folder until the run ends."""

    def state() -> tuple[int, int]:
        found = path.stat() if path.exists() else None
        return (found.st_mtime_ns, found.st_ino) if found else (0, 0)

    before = state()
    while all(process.is_alive() for process in processes):
        if (now := state()) != before:
            before = now
            yield
        time.sleep(0.001)


def rows(root: Path) -> list[dict[str, str]]:
    """Read the logged values of each iteration, except measured times and memory."""
    if not (root / "metrics.csv").exists():
        return []
    with (root / "metrics.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    return [
        {name: v for name, v in row.items() if not (name in MEASURED or "seconds" in name)}
        for row in found
    ]


def temporary(root: Path) -> list[str]:
    return [str(path.relative_to(root)) for path in root.rglob("*") if "tmp" in path.name]


def wait(processes: list[ForkServerProcess], path: Path, count: int) -> None:
    """Wait for `count` changes of a file or folder."""
    seen = sum(1 for _ in zip(range(count), changes(path, processes), strict=False))
    assert seen == count, path.parent.with_suffix(".log").read_text()[-3000:]


def workers(pid: int) -> list[int]:
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
