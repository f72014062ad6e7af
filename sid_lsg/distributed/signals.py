"""Signals end the program with one message and status 128 plus their number."""

import os
import signal
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn

from sid_lsg.messages.errors import Interrupted

NAMES: dict[int, str] = {
    signal.SIGTERM: "SIGTERM",
    signal.SIGINT: "Ctrl-C",
    signal.SIGHUP: "SIGHUP (closed terminal)",
    # Batch systems announce the end of a job's time by these.
    signal.SIGUSR1: "SIGUSR1",
    signal.SIGUSR2: "SIGUSR2",
    signal.SIGXCPU: "SIGXCPU (limit of CPU time)",
}


def ending() -> tuple[int, ...]:
    """Return the signals that end the program. In a SLURM job, SIGUSR1 asks to requeue it."""
    slurm = {"SLURM_JOB_ID", "SLURM_NTASKS"} & os.environ.keys()
    return tuple(number for number in NAMES if not (slurm and number == signal.SIGUSR1))


def is_launched() -> bool:
    """Return whether Lightning has launched this process from another one."""
    return os.environ.get("LOCAL_RANK", "0") != "0" and "TORCHELASTIC_RUN_ID" not in os.environ


@contextmanager
def ending_on_signals() -> Iterator[None]:
    """Let signals raise `Interrupted`, wherever the program is.

    Use it where nothing has to be finished first: at the start, in the final comparison and in
    commands other than `fit`.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.getsignal(number) for number in ending()}
    install(_end, ending())
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def install(handler: Callable[[int, FrameType | None], None], signals: tuple[int, ...]) -> None:
    """Install a handler for all of the signals that are not ignored.

    `nohup`, and `&` in a script, start a program that ignores some.
    """
    for number in signals:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


def protect_launched(launcher: Any) -> None:
    """Let a launcher of Lightning start processes with the ending signals blocked.

    A signal to all processes would kill those that have not yet come to ignore it, and Lightning
    would then kill this one, too.

    Args:
        launcher: The launcher; None if another program starts the processes.
    """
    if launcher is None or threading.current_thread() is not threading.main_thread():
        return
    own = launcher.launch

    def launch(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        def unblocked(*args: Any, **options: Any) -> Any:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, NAMES)
            return function(*args, **options)

        signal.pthread_sigmask(signal.SIG_BLOCK, NAMES)
        try:
            return own(unblocked, *args, **options)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, NAMES)

    launcher.launch = launch


def ignore_in_launched() -> None:
    """Ignore the ending signals, which this process has had blocked since its start."""
    for number in NAMES:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, NAMES)


def interrupted(message: str, signum: int, together: bool = False) -> Interrupted:
    """Return the exception for a signal; a process that Lightning has launched exits with status 0.

    With any other status, Lightning's observer would kill the first process before it has ended.

    Args:
        message: What was saved and how to continue.
        signum: The signal's number.
        together: Whether all processes of a run have agreed to end.
    """
    return Interrupted(message, 0 if is_launched() else 128 + signum, together)


def leave_terminal(signum: int) -> None:
    """At SIGHUP, write to nowhere what would go to the closed terminal: it raises errors."""
    if signum != signal.SIGHUP:
        return
    for descriptor in (1, 2):
        with suppress(OSError):
            if stat.S_ISCHR(os.fstat(descriptor).st_mode) and not os.isatty(descriptor):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, descriptor)
                os.close(nowhere)


def _end(signum: int, frame: FrameType | None) -> NoReturn:
    leave_terminal(signum)
    hint = "The same command begins or continues what was interrupted; `fit` with --ckpt_path last"
    raise interrupted(f"{NAMES[signum]}. {hint}.", signum)
