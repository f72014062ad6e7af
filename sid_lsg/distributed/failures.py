"""End all processes of a run soon after one of them has failed.

Otherwise the others would wait for it in a collective operation, with NCCL for half an hour, and
ignore signals. They watch the store through which the processes connect, also before they do.
"""

import math
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from concurrent import futures
from contextlib import suppress
from datetime import timedelta
from typing import Any, NamedTuple

from lightning.fabric.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from lightning.fabric.utilities.rank_zero import rank_zero_only
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore

from sid_lsg.messages.errors import Interrupted, SharedError, TrainingStopped, UsageError

_PERIOD = 0.5  # seconds between two looks at the store
_MOMENT = 1.0  # seconds that a process has to end by itself when another one has failed
_PATIENCE = 5.0  # seconds that rank 0 waits for the others at its end
_LIMIT = 20.0  # seconds that a failed process has to end; rank 0 waits for others that still start
_WRITING = 600.0  # seconds that a checkpoint has to become complete after a failure
_READY = 1800.0  # seconds that processes wait for others to start
_LAUNCHES = "SID_LSG_LAUNCHED"  # variable of processes that Lightning launches
_FAILURE, _HERE, _SET_UP, _LEFT = "failure", "here", "set up", "left"  # keys of the store


class Place(NamedTuple):
    """Where the processes' store is, and this process's part in it.

    Attributes:
        address: Address of the store.
        port: Port of the store.
        hosts: Whether this process hosts the store, as rank 0 does without torchrun.
        processes: The number of processes; 0 if it is unknown or Lightning will launch some.
        step: The step of a SLURM job, whose steps use the same port.
    """

    address: str
    port: int
    hosts: bool
    processes: int
    step: str = ""


class _Watch(threading.Thread):
    """Look for a failure of another process, and end this one then."""

    def __init__(self, place: Place) -> None:
        super().__init__(name="failure-watch", daemon=True)
        self.place = place
        self.on_failure: Callable[[], Any] = lambda: None
        self._store: Store | None = None
        self._connected = threading.Event()
        self._refused: Exception | None = None  # why the store cannot be hosted
        self._ending = threading.Event()  # this process ends because of an error of its own
        self._over = threading.Event()
        self._pid, self._parent = os.getpid(), os.getppid()
        self._first: bool | None = None  # whether this process's error was the first one
        self._left = False
        if place.hosts:
            self._connect()

    def run(self) -> None:
        """Watch until the end."""
        while self._store is None and not self._over.wait(_PERIOD):
            self._connect()
        while not self._over.wait(_PERIOD):
            try:
                failed = self._keys.check([_FAILURE])
            except RuntimeError:
                self._leave(1, _LIMIT, "rank 0 has ended without a message. See its log.")
            else:
                if failed:
                    self.on_failure()
                    self._leave(self._status, _MOMENT)

    def claim(self, error: BaseException) -> bool:
        """Report an error of this process; return whether it is the first one of all."""
        if self._pid != os.getpid():  # in a process that a library has forked
            return True
        if self._first is None:
            self._ending.set()
            self._first = self._claim(error)
            if self._first:
                self.on_failure()
        return self._first

    def _claim(self, error: BaseException) -> bool:
        if not self.place.hosts:
            self._connected.wait(_LIMIT)
        if self._store is None:
            return True
        mine = f"{_status(error)} {socket.gethostname()} {os.getpid()}"
        try:
            return bool(self._keys.compare_set(_FAILURE, "", mine).decode() == mine)
        except RuntimeError:  # rank 0 has ended
            return True

    def wait_until_ready(self) -> None:
        """Wait until all processes are ready to connect.

        Raises:
            SystemExit: If one of them has failed.
            UsageError: If the port of the store is in use.
        """
        end = time.monotonic() + _READY
        if not self._connected.wait(_LIMIT if self.place.hosts else _READY):
            if self._refused is None:
                return
            raise UsageError(
                f"the processes cannot connect: port {self.place.port} of {self.place.address} is "
                "in use. Set the variable MASTER_PORT to a free port, or end the program that has "
                "it."
            ) from self._refused
        with suppress(RuntimeError):  # rank 0 has ended; `run` ends this process
            self._keys.add(_SET_UP, 1)
            while self._keys.add(_SET_UP, 0) < self.place.processes and time.monotonic() < end:
                if self._keys.check([_FAILURE]):
                    sys.exit(self._status)
                time.sleep(_PERIOD / 5)

    def stop(self) -> None:
        """Leave the other processes. The one with the store waits for them.

        After a failure the thread goes on: it ends this process if its end takes too long.
        """
        if not self._ending.is_set():
            self._over.set()
        self._wait_for_others(_LIMIT if self._ending.is_set() else _PATIENCE)

    def _wait_for_others(self, seconds: float) -> None:
        if self._store is None:
            return
        end = time.monotonic() + seconds
        with suppress(RuntimeError):  # rank 0 has ended
            if not self.place.hosts:
                self._keys.add(_LEFT, 0 if self._left else 1)
                self._left = True
                return
            others = (self.place.processes or math.inf) - 1
            if self._keys.add(_HERE, 0) >= others:  # all of them will soon look at the store
                end = min(end, time.monotonic() + _PATIENCE)
            while self._keys.add(_LEFT, 0) < others and time.monotonic() < end:
                time.sleep(_PERIOD / 5)

    @property
    def _status(self) -> int:
        """Return the exit status of the process that has failed."""
        return int(self._keys.get(_FAILURE).split()[0])

    @property
    def _keys(self) -> PrefixStore:
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")  # torchrun keeps its store
        assert self._store is not None
        return PrefixStore(f"sid_lsg/{self.place.step}/{attempt}", self._store)

    def _connect(self) -> None:
        """Connect if rank 0 is there; torch would print long warnings while it is not."""
        address, port, hosts, *_ = self.place
        if self._parent != os.getppid():  # the launching process has been killed
            os._exit(1)
        try:
            if not hosts:
                socket.create_connection((address, port), _PATIENCE).close()
            self._store = TCPStore(
                address,
                port,
                is_master=hosts,
                timeout=timedelta(seconds=_LIMIT),
                wait_for_workers=False,
                multi_tenant=True,  # the processes' group shares it
            )
            self._keys.add(_HERE, 0 if hosts else 1)
        except (OSError, RuntimeError) as error:
            self._refused = error if hosts else None
            return
        self._connected.set()

    def _leave(self, status: int, seconds: float, message: str = "") -> None:
        """End this process, unless it ends by itself in time."""
        if self._over.wait(seconds):
            return
        if self._ending.is_set():
            self._over.wait(_LIMIT - seconds)
        with suppress(Exception):
            if message and rank_zero_only.rank == 1:
                print(f"error: {message}", file=sys.stderr)
            sys.stdout.flush()
            sys.stderr.flush()
        futures.wait(_works, _WRITING)
        self._wait_for_others(_PATIENCE)
        os._exit(status)


_watches: list[_Watch] = []  # of this process: none or one
_works: list["futures.Future[Any]"] = []  # what is completed before this process is ended


def complete(work: "futures.Future[Any]") -> None:
    """Complete what a thread does, such as writing a file, before a failure ends this process."""
    _works[:] = [work]


def watch_launched() -> None:
    """Watch for failures of the other processes if a launcher has started this one."""
    if place := _place():
        watch(place)


def tell(error: BaseException) -> None:
    """Tell the other processes of an error that ends this one, if they watch for failures.

    Errors that all processes raise together (`SharedError`, `TrainingStopped`, and `Interrupted`
    after an iteration) end each of them in its own time.

    Raises:
        SystemExit: If another process has told of an error before. Later errors mostly follow from
            the first one, and are not shown.
    """
    if not share_failure(error):
        raise SystemExit(_status(error)) from None


def watch(place: Place, on_failure: Callable[[], Any] | None = None) -> None:
    """Watch for failures of other processes, unless this process does so already.

    Args:
        place: The processes' store.
        on_failure: Called when a process has failed, before this one ends.
    """
    if not _watches:
        _watches.append(_Watch(place))
        _watches[0].start()
    if on_failure is not None:
        _watches[0].on_failure = on_failure


def share_failure(error: BaseException) -> bool:
    """Tell the other processes of an error, so that they end.

    Returns:
        False if another process has told of an error before; this one's is not shown then.
    """
    together = isinstance(error, SharedError | TrainingStopped) or not _status(error)
    if isinstance(error, Interrupted):
        together = error.together
    if together or not _watches:
        return True
    return _watches[0].claim(error) or isinstance(error, Interrupted)


def wait_until_ready(processes: int) -> None:
    """Wait until all processes have checked their options, before anything is written.

    Processes that Lightning will launch are not there yet and are not waited for.

    Args:
        processes: The number of processes of the run.

    Raises:
        SystemExit: If one of them has failed.
    """
    if processes > 1 and "LOCAL_RANK" not in os.environ:
        os.environ[_LAUNCHES] = "1"  # for them
    for own in _watches:
        own.wait_until_ready()


def stop_watching() -> None:
    """End the watch with the program; keep the processes' store until all know of a failure."""
    for own in _watches:
        own.stop()
    _watches.clear()


def _place() -> Place | None:
    """Return where the store is by the variables of torchrun, SLURM or another launcher.

    Returns:
        The place; None for a process without a launcher, or with one that sets other variables.
    """
    given = os.environ
    with suppress(KeyError, ValueError, RuntimeError):  # Lightning explains wrong variables
        if TorchElasticEnvironment.detect():
            place = place_of(TorchElasticEnvironment(), given["RANK"] == "0", given["WORLD_SIZE"])
        elif SLURMEnvironment.detect():
            slurm = SLURMEnvironment()
            place = place_of(slurm, slurm.global_rank() == 0, slurm.world_size())
        else:
            ranks = {given[name] for name in ("NODE_RANK", "LOCAL_RANK") if name in given}
            if not ranks or "MASTER_PORT" not in given:
                return None
            complete = "LOCAL_RANK" in given and _LAUNCHES not in given
            processes = given.get("WORLD_SIZE", 0) if complete else 0
            place = place_of(LightningEnvironment(), ranks == {"0"}, processes)
        return None if place.processes == 1 else place
    return None


def place_of(environment: ClusterEnvironment, is_first: bool, processes: int | str) -> Place:
    """Return where the store of a launcher's processes is.

    Args:
        environment: The launcher.
        is_first: Whether this process is the first one, which hosts the store unless torchrun does.
        processes: The number of processes; 0 if it is unknown.
    """
    hosts = is_first and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    steps = isinstance(environment, SLURMEnvironment)
    step = os.environ.get("SLURM_STEP_ID", "") if steps else ""
    return Place(environment.main_address, environment.main_port, hosts, int(processes), step)


def _status(error: BaseException) -> int:
    """Return the exit status of the program after an error."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(bool(error.code))
    return 2 if isinstance(error, UsageError) else 1
