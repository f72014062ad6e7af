"""Stand in for the Python interpreter, for programs that start others.

The stand-in is an executable file. It hands its arguments, folder, environment and output to a
process of the fork server, which has imported the libraries. It passes signals on to that process
and ends as that one does. If it is killed, so is the process.
"""

import json
import os
import socket
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from multiprocessing.connection import wait
from multiprocessing.reduction import DupFd
from pathlib import Path
from threading import Thread
from typing import Any

from tests.helpers import forked

_CLIENT = """#!{python} -SE
import json, os, signal, socket, sys

own = {{signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2}}
signal.pthread_sigmask(signal.SIG_BLOCK, own)
server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
asked = json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
socket.send_fds(server, [len(asked).to_bytes(8, "big")], [1, 2])
server.sendall(asked)
pid = int(server.makefile().readline())
for number in own:
    if signal.getsignal(number) is not signal.SIG_IGN:
        signal.signal(number, lambda number, _: os.kill(pid, number))
signal.pthread_sigmask(signal.SIG_UNBLOCK, own)
status = int(server.makefile().readline())
if status < 0:
    signal.signal(-status, signal.SIG_DFL)
    os.kill(os.getpid(), -status)
sys.exit(status)
"""


@cache
def interpreter() -> str:
    """Return the path of the stand-in; starts its server in this process."""
    folder = Path(tempfile.mkdtemp())  # a socket's path must be short
    address, client = str(folder / "socket"), folder / "python"
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(address)
    listening.listen()
    client.write_text(_CLIENT.format(python=sys.executable, address=address))
    client.chmod(0o755)
    Thread(target=_listen, args=(listening,), daemon=True).start()
    return str(client)


def _listen(listening: socket.socket) -> None:
    while True:
        Thread(target=_serve, args=(listening.accept()[0],), daemon=True).start()


def _serve(client: socket.socket) -> None:
    """Start a program's process; tell its number, and its status when it ends."""
    size, streams, *_ = socket.recv_fds(client, 8, 2)
    with client.makefile("rb") as file:
        line, folder, environment = json.loads(file.read(int.from_bytes(size, "big")))
    arguments = _Streams(streams), line, folder, environment
    process = forked.context.Process(target=_act, args=arguments, daemon=False)
    process.start()
    for stream in streams:
        os.close(stream)
    with client, suppress(OSError):  # a stand-in that was killed does not listen
        client.sendall(f"{process.pid}\n".encode())
        if client in wait([process.sentinel, client]):
            process.kill()
        process.join()
        client.sendall(f"{process.exitcode}\n".encode())


class _Streams:
    """Output and error stream; pickling hands them to the new process."""

    def __init__(self, streams: Sequence[int]) -> None:
        self.streams = streams

    def __reduce__(self) -> Any:
        return _received, tuple(map(DupFd, self.streams))


def _received(*streams: Any) -> list[int]:
    return [stream.detach() for stream in streams]


def _act(streams: Sequence[int], line: list[str], folder: str, environment: dict[str, str]) -> None:
    """Act as `python LINE` in this process."""
    for number, stream in enumerate(streams, 1):
        os.dup2(stream, number)
        os.close(stream)
    forked.become(environment)
    while line[0] == "-u":
        line = line[1:]
    count = 2 if line[0] == "-m" else 1
    forked.program(line[:count], line[count:], Path(folder))
