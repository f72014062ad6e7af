"""Let waiting threads sleep instead of spin while other programs use the processors.

OpenMP's threads spin for milliseconds when they wait for each other. That is fastest on a quiet
machine. On a busy one the thread that they wait for may not run, because they occupy its processor.

GCC's libgomp, with which PyTorch is built on Linux, lets threads sleep at once if a process has
more OpenMP threads than processors. An idle team of threads adds to their number. So the team
switches spinning off while it exists; the numbers of threads and results stay as they are.
"""

import ctypes
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

_OWN_SETTINGS = ("OMP_WAIT_POLICY", "OMP_PROC_BIND", "OMP_PLACES", "GOMP_")
_INTERVAL_S = 0.5
# Shares of their time in which the threads wait for a processor. While they spin, it is 0.1 or less
# on a quiet machine, and 0.4 beside one program on two processors.
_BUSY, _QUIET = 0.25, 0.08
# Half seconds: of a quiet machine until threads spin again, and until they try at any load.
_QUIET_TURNS, _FIRST_TRY, _LAST_TRY, _TRIED = 6, 10, 80, 3


def watch_load() -> None:
    """Start a thread that lets OpenMP's threads spin only while the machine is quiet.

    It does nothing if the environment sets how OpenMP's threads wait, if there is one thread or
    processor, or if the system does not say how long threads wait for a processor. Call it before
    PyTorch is imported; it imports nothing.
    """
    chosen = any(name.startswith(_OWN_SETTINGS) for name in os.environ)
    single = os.environ.get("OMP_NUM_THREADS") == "1" or _processors() < 2
    running = any(isinstance(thread, _Watch) for thread in threading.enumerate())
    if not (chosen or single or running) and waited() is not None:
        _Watch().start()


def waited(folder: Path = Path("/proc/self/task")) -> tuple[int, int] | None:
    """Return for how many nanoseconds this process's threads ran, and waited for a processor.

    Returns:
        The sums over the living threads; None if the system does not count them.
    """
    try:
        rows = [row for task in folder.iterdir() if len(row := _schedstat(task)) == 3]
    except OSError:
        return None
    return (sum(int(row[0]) for row in rows), sum(int(row[1]) for row in rows)) if rows else None


def _schedstat(task: Path) -> list[str]:
    try:
        return (task / "schedstat").read_text().split()
    except OSError:  # the thread has ended
        return []


class Load:
    """Decide from the times of threads whether the machine is too busy for spinning.

    Threads that sleep also wait for programs of low priority, which spinning ones would not: so
    they try to spin from time to time, more and more rarely if it is in vain.

    Attributes:
        busy: The decision.
    """

    def __init__(self) -> None:
        self.busy = False
        self._last = (0, 0)
        self._since = _TRIED  # half seconds since the last change
        self._low = 0
        self._try = _FIRST_TRY

    def update(self, times: tuple[int, int]) -> bool:
        """Return whether the machine is busy.

        Args:
            times: For how many nanoseconds threads ran and waited, in total.
        """
        ran, waiting = (now - before for now, before in zip(times, self._last, strict=True))
        self._last = times
        if ran + waiting < 1e9 * _INTERVAL_S / 5:  # idle, or threads have ended: says nothing
            return self.busy
        share = max(0, waiting) / (max(0, ran) + max(0, waiting))
        self._since += 1
        self._low = self._low + 1 if share < _QUIET else 0
        if not self.busy and share > _BUSY:
            in_vain = self._since <= _TRIED
            self._try = min(2 * self._try, _LAST_TRY) if in_vain else _FIRST_TRY
            self.busy, self._since, self._low = True, 0, 0
        elif self.busy and (self._low >= _QUIET_TURNS or self._since >= self._try):
            self.busy, self._since = False, 0
        return self.busy


class _Watch(threading.Thread):
    """Hold an idle team of threads while the machine is busy."""

    def __init__(self) -> None:
        super().__init__(name="sid_lsg.watch_load", daemon=True)

    def run(self) -> None:
        """Look at the load every half second, until the program ends."""
        load, team = Load(), None
        while True:
            time.sleep(_INTERVAL_S)
            torch = sys.modules.get("torch")
            count = getattr(torch, "get_num_threads", None)  # absent while torch is imported
            times = waited()
            if count is None or times is None:
                continue
            busy = load.update(times)
            if busy and team is None:
                # One more than the processors, together with PyTorch's own team.
                team = Team(max(2, _processors() - count() + 2))
            elif team is not None and not busy:
                team.end()
                team = None


class Team:
    """An idle team of OpenMP threads of its own.

    Args:
        number: The number of threads.
    """

    def __init__(self, number: int) -> None:
        self._made, self._ended = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._hold, args=(number,), daemon=True)
        self._thread.start()
        self._made.wait()

    def end(self) -> None:
        """End the team's threads, so that others spin again."""
        self._ended.set()
        self._thread.join()

    def _hold(self, number: int) -> None:
        try:
            for start in _starters():
                start(number)
        finally:
            self._made.set()
        self._ended.wait()  # libgomp ends the team with its first thread


def _starters() -> list[Callable[[int], None]]:
    """Return a function for each loaded libgomp that starts a team of threads."""
    maps = Path("/proc/self/maps").read_text().splitlines()
    paths = {line.split(maxsplit=5)[5] for line in maps if "/libgomp" in line}
    work = ctypes.cast(ctypes.CDLL(None).getppid, ctypes.c_void_p)  # each thread's task: no effect

    def starter(path: str) -> Callable[[int], None]:
        parallel = ctypes.CDLL(path).GOMP_parallel
        parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        parallel.restype = None
        return lambda number: parallel(work, None, number, 0)

    return [starter(path) for path in sorted(paths)]


def _processors() -> int:
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else 1
