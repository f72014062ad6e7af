"""Real processes that have imported everything before: importing takes longer than most tests.

A server that has imported it forks them. Each has an environment, streams and a status of its own.
"""

import multiprocessing
import os
import signal
from collections.abc import Callable, Mapping
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import torch
from torch.multiprocessing.spawn import start_processes

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["sid_lsg.cli", "sid_lsg.loggers", "pytest"])


def start(
    function: Callable[..., Any], *arguments: Any, log: Path, environment: Mapping[str, str] = {}
) -> ForkServerProcess:
    """Call a function in a process of its own, which adds what it prints to a file."""
    whole = (function, arguments, log, dict(environment))
    process = _context.Process(target=_become, args=whole, daemon=False)
    process.start()
    return process


def together(function: Callable[..., Any], *arguments: Any) -> None:
    """Call function(rank, *arguments) in two processes; raise what one of them raises."""
    start_processes(function, arguments, nprocs=2, start_method="forkserver")


def _become(
    function: Callable[..., Any], arguments: Any, log: Path, environment: dict[str, str]
) -> None:
    with log.open("a") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    multiprocessing.set_start_method("fork", force=True)  # the platform's own, for the workers
    torch.set_num_threads(1)
    function(*arguments)
