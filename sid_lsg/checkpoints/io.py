"""Write checkpoints atomically, and load them without executing code."""

import traceback
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import lightning as L
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_info

from sid_lsg.checkpoints.file import save, sync
from sid_lsg.checkpoints.host_copy import host_copy
from sid_lsg.checkpoints.opening import CONTINUE, OpenCheckpoint, open_checkpoint
from sid_lsg.checkpoints.shards import joined
from sid_lsg.distributed.failures import complete
from sid_lsg.files.replacing import replacing
from sid_lsg.messages.errors import UsageError

Action = Callable[[], None]

WRITTEN = "Trainer.save_checkpoint"
"""Lightning's name of the barrier at which processes wait for one that writes a checkpoint."""

_NO_ROOM = (
    "--checkpoint.background: the host memory has no room for a copy of the state, so the training "
    "waits while checkpoints are written."
)


class SafeCheckpointIO(TorchCheckpointIO):
    """Write to a temporary name, then rename; read only complete checkpoints of plain data.

    Attributes:
        opened: A checkpoint that is already open; the next load of its path returns it.
        then: What to do when the next file is complete. If it is set, a thread writes the file from
            a copy in host memory and does it, while the caller continues.
    """

    opened: OpenCheckpoint | None = None
    then: Action | None = None
    _writing: "Future[OSError | None] | None" = None
    _told = False  # whether the log says that there is no room for a copy

    def save_checkpoint(
        self, checkpoint: Mapping[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        """Write a file directly from the tensors, or from a copy, and flush it to the disk.

        Raises:
            OSError: If writing fails; an earlier file of this name is unchanged.
        """
        self.save(checkpoint, Path(path))

    def save(self, checkpoint: Mapping[str, Any], path: Path, gathered: bool = False) -> None:
        """Write a file as `save_checkpoint` does.

        Args:
            checkpoint: The content.
            path: The file.
            gathered: Whether weights and optimizers' states are copies in host memory.

        Raises:
            OSError: If writing fails; an earlier file of this name is unchanged.
        """
        if self.then is not None:
            copied = host_copy(checkpoint, gathered)
            if copied is not None:
                self._writing = _in_thread(copied, path, self.then)
                return
            if not self._told:
                rank_zero_info(_NO_ROOM)
            self._told = True
        write_file(checkpoint, path)

    @property
    def is_writing(self) -> bool:
        """Return True if a thread writes or has written a file, and `finish` was not called."""
        return self._writing is not None

    @property
    def has_written(self) -> bool:
        """Return True if a thread has ended, successfully or not, and `finish` was not called."""
        return self._writing is not None and self._writing.done()

    def finish(self) -> None:
        """Wait for the thread that writes a file, if there is one.

        Raises:
            OSError: If writing has failed; an earlier file of this name is unchanged.
        """
        writing, self._writing = self._writing, None
        if writing is not None and (error := writing.result()) is not None:
            raise error

    def load_checkpoint(
        self, path: Any, map_location: Any = "cpu", weights_only: bool | None = True
    ) -> dict[str, Any]:
        """Read a file or folder without executing code, whatever `weights_only` is.

        The tensors of a file are read when they are used.

        Raises:
            UsageError: If it is not a whole checkpoint of a training, or of a newer version.
        """
        return cast(dict[str, Any], joined(self.take(Path(path)).content))

    def take(self, path: Path) -> OpenCheckpoint:
        """Return the checkpoint that is already open if it has this path; otherwise open it.

        Raises:
            UsageError: If it is not a whole checkpoint of a training, or of a newer version.
        """
        opened, self.opened = self.opened, None
        if opened is not None and opened.path.absolute() == path.absolute():
            return opened
        return open_checkpoint(path, remedy=CONTINUE)


def write_file(checkpoint: Mapping[str, Any], path: Path) -> None:
    """Write a checkpoint under a temporary name, flush it to the disk, and rename it.

    Raises:
        OSError: If that fails; an earlier file of this name is unchanged.
    """
    with replacing(path, over_folder=True) as temporary:
        save(checkpoint, temporary)
    sync(path.parent)


def _in_thread(copied: Mapping[str, Any], path: Path, then: Action) -> "Future[OSError | None]":
    """Write a checkpoint in a thread, for which the program waits before it ends."""

    def run() -> OSError | None:
        nonlocal copied
        try:
            write_file(copied, path)
        except OSError as error:
            traceback.clear_frames(error.__traceback__)  # torch keeps them, and so the copy
            return OSError(*error.args)
        finally:
            copied = {}
        then()
        return None

    executor = ThreadPoolExecutor(1, "sid_lsg.checkpoint")
    writing = executor.submit(run)
    executor.shutdown(wait=False)  # the thread ends when the file is written
    complete(writing)
    return writing


def own_io(trainer: L.Trainer) -> SafeCheckpointIO | None:
    """Return the writer of a Trainer; None if it is one of another package."""
    io = trainer.strategy.checkpoint_io
    return io if isinstance(io, SafeCheckpointIO) else None


def write(trainer: L.Trainer, path: Path, then: Action, background: bool) -> tuple[str, bool]:
    """Write the logs, then a checkpoint. For all ranks.

    Args:
        trainer: The Trainer.
        path: The file or folder.
        then: What to do when it is complete.
        background: Whether a thread may write the file while the training continues.

    Returns:
        The error message, or ""; and whether a thread is writing. Then call `finish`.
    """
    what, io = "", own_io(trainer)
    try:
        for logger in trainer.loggers:
            logger.save()  # a resumed run needs the rows up to its checkpoint
            what = what or getattr(logger, "unwritten", "")
    except (OSError, UsageError) as error:
        what = str(error)
    if what := trainer.strategy.broadcast(what):
        return str(what), False
    if io is not None:
        io.then = then if background else None
    try:
        trainer.save_checkpoint(path, weights_only=False)  # save everything
    except OSError as error:
        what = error.strerror or str(error)
        trainer.strategy.barrier(WRITTEN)  # the other ranks wait there
    finally:
        if io is not None:
            io.then = None
    what, later = trainer.strategy.broadcast((what, io is not None and io.is_writing))
    if not (what or later):
        then()
    return str(what), bool(later)


def finish(trainer: L.Trainer) -> str:
    """Wait for the thread that writes; return its error message, or "". For all ranks."""
    what, io = "", own_io(trainer)
    try:
        if io is not None:
            io.finish()
    except OSError as error:
        what = error.strerror or str(error)
    trainer.strategy.barrier(WRITTEN)
    return str(trainer.strategy.broadcast(what))
