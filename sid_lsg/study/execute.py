"""Run tasks as subprocesses, several at a time, show their progress and end them."""

import csv
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import torch
from tqdm import tqdm

from sid_lsg.files.locks import held
from sid_lsg.study.tasks import Task

_POLL_S = 0.2
_PROGRESS_S = 5.0  # interval between looks at the progress of running fits
_END_S = 3600.0  # time for a fit that is told to end to finish its iteration and save


def alone(output: Path) -> AbstractContextManager[int]:
    """Lock a study's folder; the context yields the lock to pass on to subprocesses.

    The folder stays locked while one of them runs, even if this process is killed.

    Raises:
        UsageError: If another process holds the lock.
    """
    refusal = (
        f"--output: {str(output)!r} is in use by another study, or by a run that a killed study "
        "left behind. Wait for it, end it, or choose another folder."
    )
    return held(output, refusal, inherited=True)


@dataclass
class _Child:
    """A running task."""

    task: Task
    rest: Sequence[Task]
    number: int
    slot: int  # place among the tasks at a time, which decides the device
    process: subprocess.Popen[bytes]
    started: float
    share: float = 0.0  # finished share of its work
    before: float = 0.0  # share that was finished when it started


@dataclass
class Board:
    """Progress of the tasks: counts, finished work and remaining time.

    Args:
        jobs: All jobs, including finished ones.
    """

    jobs: Sequence[Sequence[Task]]
    started: float = field(default_factory=time.monotonic)
    done_now: float = 0.0  # work of the tasks that this process finished

    def __post_init__(self) -> None:
        """Count tasks and work, and open the progress bar."""
        tasks = [task for job in self.jobs for task in job]
        self.count, self.total = len(tasks), sum(task.cost for task in tasks)
        self.finished = sum(task.finished for task in tasks)
        self.left = self.total - sum(task.cost for task in tasks if task.finished)
        self.bar = tqdm(
            total=self.total,
            initial=self.total - self.left,
            disable=None,  # if the output is not a terminal
            leave=False,
            bar_format="{percentage:3.0f}%|{bar}| {desc}",
        )

    def tell(self, text: str) -> None:
        """Print a line above the progress bar."""
        tqdm.write(text, file=sys.stdout)
        sys.stdout.flush()

    def remaining(self, running: Sequence[_Child]) -> str:
        """Update the bar; return the remaining time, at the speed since this process started."""
        going = sum((child.share - child.before) * child.task.cost for child in running)
        known = sum(child.share * child.task.cost for child in running)
        done, elapsed = self.done_now + going, time.monotonic() - self.started
        self.bar.n = min(self.total, self.total - self.left + known)
        if done <= 0:
            return ""
        left = f", about {duration((self.left - known) * elapsed / done)} left"
        self.bar.set_description_str(f"{self.finished} of {self.count} done{left}")
        return left


def duration(seconds: float) -> str:
    """Format a duration in seconds, minutes or hours."""
    seconds = max(0.0, seconds)
    if seconds < 90:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min"


def execute(
    jobs: Sequence[Sequence[Task]],
    processes: int,
    threads: int | None,
    lock: int,
    finished: Callable[[Task], None],
) -> list[str]:
    """Run all unfinished tasks; those of a job run one after the other.

    Ctrl-C and SIGTERM end the running tasks; fits save first.

    Args:
        jobs: Lists of tasks.
        processes: Number of tasks at a time, each on a CUDA device of its own if there are enough.
        threads: CPU threads per task; None leaves the number to torch.
        lock: The study's lock, which subprocesses inherit.
        finished: Called after each finished task.

    Returns:
        A message for each failed task.
    """
    board = Board(jobs)
    failures: list[str] = []
    waiting = deque([task for task in job if not task.finished] for job in jobs)
    running: list[_Child] = []
    names = cuda_devices()
    looked = 0.0
    try:
        while running or waiting:
            while waiting and len(running) < processes:
                if job := waiting.popleft():
                    number = board.finished + len(running) + len(failures) + 1
                    slot = min({*range(processes)} - {child.slot for child in running})
                    device = names[slot % len(names)] if names and processes > 1 else None
                    child = _start(job, number, threads, lock, slot, device)
                    running.append(child)
                    board.tell(
                        f"[{number}/{board.count}] {child.task.title}{board.remaining(running)}"
                    )
            time.sleep(_POLL_S)
            if time.monotonic() - looked > _PROGRESS_S:
                looked = time.monotonic()
                for child in running:
                    child.share = max(child.share, done_share(child.task))
                board.remaining(running)
            for child in [child for child in running if child.process.poll() is not None]:
                running.remove(child)
                took = duration(time.monotonic() - child.started)
                if child.process.returncode == 0 and child.task.finished:
                    board.finished += 1
                    board.left -= child.task.cost
                    board.done_now += child.task.cost * (1 - child.before)
                    finished(child.task)
                    left = board.remaining(running)
                    board.tell(f"[{child.number}/{board.count}] {child.task.title}: {took}{left}")
                    waiting.appendleft([*child.rest])
                else:
                    failures.append(_failure(child))
                    board.tell(f"[{child.number}/{board.count}] failed: {failures[-1]}")
    except BaseException:
        _end(running)
        raise
    finally:
        board.bar.close()
    return failures


def done_share(task: Task) -> float:
    """Return the finished share of a fit, from the last complete row of its metrics.csv."""
    try:
        lines = (task.folder / "metrics.csv").read_text().splitlines()
        step = dict(zip(*csv.reader([lines[0], lines[-1]]), strict=True))["step"]
        return min(1.0, int(step) / task.iterations)
    except (OSError, IndexError, KeyError, TypeError, ValueError, ZeroDivisionError):
        return 0.0


def cuda_devices() -> list[str]:
    """Return the names of the CUDA devices that this process may use.

    They are numbers, or the names of GPUs or MIG instances in CUDA_VISIBLE_DEVICES.
    """
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is None:
        return [str(number) for number in range(torch.cuda.device_count())]
    names = [name.strip() for name in given.split(",")]
    end = next((place for place, name in enumerate(names) if name in ("", "-1")), len(names))
    return names[:end]  # CUDA ignores the rest


def _start(
    job: Sequence[Task],
    number: int,
    threads: int | None,
    lock: int,
    slot: int,
    device: str | None,
) -> _Child:
    task, *rest = job
    before = done_share(task)
    if not task.folder.exists():
        task.folder.parent.mkdir(parents=True, exist_ok=True)
        task.record()
    environment = dict(os.environ)
    if threads:
        environment |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    if device is not None and not _uses_several(task):
        environment["CUDA_VISIBLE_DEVICES"] = device
    log: IO[bytes]
    with task.log.open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "sid_lsg.cli", *task.continued().command],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            pass_fds=[lock],
            start_new_session=True,  # so that only this process gets Ctrl-C; it ends the tasks
        )
    return _Child(task, rest, number, slot, process, time.monotonic(), before, before)


def _uses_several(task: Task) -> bool:
    """Return whether a task asks for more than one device."""
    asked = task.settings.get("trainer.devices", task.options.get("trainer.devices", 1))
    return str(asked) not in ("1", "-1", "auto", "None")


def _failure(child: _Child) -> str:
    lines = child.task.log.read_text(errors="replace").splitlines()
    last = next((line for line in reversed(lines) if line.strip()), "it printed nothing")
    status = child.process.returncode
    return f"{child.task.title} (status {status}; {child.task.log}): {last[-300:]}"


def _end(running: Sequence[_Child]) -> None:
    """Tell the running tasks to end, and wait for them."""
    if not running:
        return
    try:
        for child in running:
            child.process.terminate()
        what = f"{len(running)} running task{'s' if len(running) > 1 else ''}; fits save first"
        print(f"\nending {what}. Interrupt again to kill.", file=sys.stderr, flush=True)
        deadline = time.monotonic() + _END_S
        for child in running:
            child.process.wait(max(0.1, deadline - time.monotonic()))
    except BaseException as error:  # Ctrl-C again, or a timeout
        for child in running:
            if child.process.poll() is None:
                os.killpg(child.process.pid, signal.SIGKILL)
            child.process.wait()
        if not isinstance(error, subprocess.TimeoutExpired):
            raise
