"""Lock a folder, so that one process at a time writes to it."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sid_lsg.messages.errors import UsageError

_LOCK = ".lock"


@contextmanager
def held(folder: Path, refusal: str, inherited: bool = False) -> Iterator[int]:
    """Lock a folder until the context or this process ends, and yield the lock's descriptor.

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
    with (folder / _LOCK).open("a") as file:
        try:
            lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            raise UsageError(refusal) from error
        except OSError:
            pass  # a file system without locks
        yield file.fileno()


def check_free(folder: Path, refusal: str) -> None:
    """Reject a folder that another process has locked.

    Raises:
        UsageError: If another process has locked it.
    """
    if (folder / _LOCK).exists():
        with held(folder, refusal):
            pass
