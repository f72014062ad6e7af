"""Watch the memory of this process."""

import threading
import time
from collections.abc import Callable
from pathlib import Path


def anonymous() -> int:
    """Return the bytes of this process' memory that no file holds."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def peak(function: Callable[[], None]) -> int:
    """Return the most bytes that a function holds beyond those before it."""
    before, most, ended = anonymous(), 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not ended.is_set():
            most = max(most, anonymous() - before)
            time.sleep(0.001)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        function()
    finally:
        ended.set()
        watcher.join()
    return max(most, anonymous() - before)
