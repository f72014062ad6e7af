"""Start processes that have already imported the libraries; imports take longer than most tests.

A fork server imports the libraries once. Each process has its own environment, streams and exit
status.
"""

import gc
import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.util import find_spec
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from runpy import run_module, run_path
from typing import Any

import torch
from lightning.fabric.utilities.rank_zero import _get_rank, rank_zero_only
from torch.multiprocessing.spawn import start_processes

from sid_lsg.cli import main

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["tests.helpers.preloaded"])


def start(
    function: Callable[..., Any], *arguments: Any, log: Path, environment: Mapping[str, str] = {}
) -> ForkServerProcess:
    """Call a function in a new process that appends its output to a file.

    The process has the current environment and the given additions.
    """
    whole = (function, arguments, log, os.environ | environment)
    process = context.Process(target=_become, args=whole, daemon=False)
    process.start()
    return process


def all_end_well(
    function: Callable[..., Any],
    jobs: Iterable[tuple[Sequence[Any], Mapping[str, str]]],
    folder: Path,
    seconds: float = 300,
) -> str:
    """Call a function in several processes at once; return their output.

    A job consists of arguments and additions to the environment. All processes must exit with 0.
    """
    jobs = [*jobs]
    logs = [folder / f"log{number}" for number in range(len(jobs))]
    started = [
        start(function, *arguments, log=log, environment=environment)
        for log, (arguments, environment) in zip(logs, jobs, strict=True)
    ]
    try:
        for process in started:
            process.join(seconds)
    finally:
        for process in started:
            process.kill()
    said = [log.read_text() for log in logs]
    assert all(process.exitcode == 0 for process in started), [text[-3000:] for text in said]
    return "".join(said)


def launch(line: list[str]) -> None:
    """Act as `python -m sid_lsg.cli` in a new session; Lightning launches further processes."""
    os.setsid()
    sys.argv, sys.modules["__main__"].__spec__ = ["cli.py", *line], find_spec("sid_lsg.cli")
    main()


def program(entry: Sequence[str], line: Sequence[str], folder: Path) -> None:
    """Act as `python -m MODULE` or `python FILE` in a new session and in a folder."""
    os.setsid()
    os.chdir(folder)
    sys.argv = [entry[-1], *line]
    if entry[0] == "-m":
        run_module(entry[1], run_name="__main__", alter_sys=True)
    else:
        run_path(entry[0], run_name="__main__")


def together(function: Callable[..., Any], *arguments: Any) -> None:
    """Call function(rank, *arguments) in two processes; re-raise their exceptions."""
    start_processes(function, arguments, nprocs=2, start_method="forkserver")


def ranks(processes: int) -> list[dict[str, str]]:
    """Return the environment of each process, as set by Lightning's launcher."""
    if processes == 1:
        return [{}]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "NODE_RANK": "0"}
    common |= {"WORLD_SIZE": str(processes)}
    return [common | {"LOCAL_RANK": str(rank)} for rank in range(processes)]


def free_port() -> int:
    """Return a free port for the processes' rendezvous."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _become(
    function: Callable[..., Any], arguments: Any, log: Path, environment: dict[str, str]
) -> None:
    with log.open("a") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    become(environment)
    function(*arguments)


def become(environment: Mapping[str, str]) -> None:
    """Make this process of the fork server like a new one with an environment."""
    gc.freeze()  # exclude what the server has imported
    gc.set_threshold(10_000)
    os.environ.clear()
    os.environ.update(environment)
    rank_zero_only.rank = _get_rank() or 0  # Lightning read it in the server, at import
    signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs ignore it
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # jobs of nohup ignore it
    multiprocessing.set_start_method(
        "fork", force=True
    )  # the platform's default, for the data workers
    torch.set_num_threads(1)
