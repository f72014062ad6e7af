"""Folders that one process at a time writes to."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sid_lsg.messages.errors import UsageError

_LOCK = ".lock"


@contextmanager
def held(folder: Path, refusal: str, inherited: bool = False) -> Iterator[int]:
    """Hold a folder as long as this process lives, or until the end of the context.

    Args:
        folder: It, which is there.
        refusal: The message if another process holds it.
        inherited: Whether processes that get the lock's descriptor, which is given, hold it too:
            the folder stays held while one of them lives. By default processes that are forked,
            such as a loader's, hold nothing.

    Raises:
        UsageError: If another process holds it.
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
    """Refuse a folder that another process holds.

    Raises:
        UsageError: If one does.
    """
    if (folder / _LOCK).exists():
        with held(folder, refusal):
            pass
