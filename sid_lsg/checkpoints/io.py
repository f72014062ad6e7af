"""Write checkpoints atomically, and load them without executing code."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import lightning as L
from lightning.pytorch.plugins.io import TorchCheckpointIO

from sid_lsg.checkpoints.file import save, sync
from sid_lsg.checkpoints.opening import CONTINUE, OpenCheckpoint, open_checkpoint
from sid_lsg.checkpoints.shards import joined
from sid_lsg.files.replacing import replacing
from sid_lsg.messages.errors import UsageError


class SafeCheckpointIO(TorchCheckpointIO):
    """Write to a temporary name, then rename; read only complete checkpoints of plain data.

    Attributes:
        opened: A checkpoint that is already open; the next load of its path returns it.
    """

    opened: OpenCheckpoint | None = None

    def save_checkpoint(
        self, checkpoint: Mapping[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        """Write a file directly from the tensors, and flush it to the disk.

        Raises:
            OSError: If writing fails; an earlier file of this name is unchanged.
        """
        with replacing(Path(path), over_folder=True) as temporary:
            save(checkpoint, temporary)
        sync(Path(path).parent)

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


def write(trainer: L.Trainer, path: Path) -> str:
    """Write the logs, then a checkpoint; return the error message, or "". For all ranks."""
    what = ""
    try:
        for logger in trainer.loggers:
            logger.save()  # a resumed run needs the rows up to its checkpoint
            what = what or getattr(logger, "unwritten", "")
    except (OSError, UsageError) as error:
        what = str(error)
    if what := trainer.strategy.broadcast(what):
        return str(what)
    try:
        trainer.save_checkpoint(path, weights_only=False)  # save everything
    except OSError as error:
        what = error.strerror or str(error)
        trainer.strategy.barrier("Trainer.save_checkpoint")  # the other ranks wait there
    return str(trainer.strategy.broadcast(what))
