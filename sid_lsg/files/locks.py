"""Lock a folder, so that one process at a time writes to it."""

import fcntl
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from sid_lsg.messages.errors import UsageError

_LOCK = ".lock"
_PATIENCE = 180.0  # seconds for which a file server may keep the lock of a machine that has died
_PERIOD = 5.0


@contextmanager
def held(folder: Path, refusal: str, inherited: bool = False) -> Iterator[int]:
    """Lock a folder until the context or this process ends, and yield the lock's descriptor.

    The lock file names its holder. If that is on another machine, which may have died, the lock is
    tried for three minutes, after which file servers release it.

    Args:
        folder: An existing folder.
        refusal: The message if another process has locked it.
        inherited: Share the lock with processes that inherit the descriptor: the folder stays
            locked while one of them lives. By default forked processes, such as those of a data
            loader, do not hold the lock.

    Raises:
        UsageError: If another process has locked it.
    """
    lock = fcntl.flock if inherited else fcntl.lockf
    with (folder / _LOCK).open("a+", encoding="utf-8") as file:
        end = time.monotonic() + _PATIENCE
        while True:
            try:
                lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError) as error:
                holder = _holder(file)
                elsewhere = holder and holder[0] != socket.gethostname()
                if not elsewhere or time.monotonic() > end:
                    raise UsageError(f"{refusal}{_describe(folder / _LOCK, holder)}") from error
                if end - time.monotonic() > _PATIENCE - _PERIOD:
                    what = f"waiting up to 3 minutes for {holder[0]} to release {folder / _LOCK}"
                    print(what, file=sys.stderr, flush=True)
                time.sleep(_PERIOD)
            except OSError:  # a file system without locks
                break
            else:
                with suppress(OSError):  # a full disk
                    file.truncate(0)
                    file.write(f"{socket.gethostname()} {os.getpid()}\n")
                    file.flush()
                break
        yield file.fileno()


def _holder(file: TextIO) -> list[str]:
    """Return the host and the process that hold a lock; [] if the file does not name them."""
    with suppress(OSError, UnicodeDecodeError):
        file.seek(0)
        words = file.read(500).split()
        if len(words) == 2:
            return words
    return []


def _describe(lock: Path, holder: list[str]) -> str:
    return f" {str(lock)!r} is held by process {holder[1]} on {holder[0]}." if holder else ""


def check_free(folder: Path, refusal: str) -> None:
    """Reject a folder that another process has locked.

    Raises:
        UsageError: If another process has locked it.
    """
    if (folder / _LOCK).exists():
        with held(folder, refusal):
            pass
