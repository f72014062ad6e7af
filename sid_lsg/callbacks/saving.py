"""Write checkpoints one at a time, also while the training continues, and delete old ones."""

import time
from dataclasses import dataclass
from pathlib import Path

import lightning as L
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from sid_lsg.callbacks.retention import delete, on_first, point
from sid_lsg.checkpoints.io import finish, own_io, write
from sid_lsg.checkpoints.opening import LAST


@dataclass
class _Attempt:
    """A checkpoint that is being written.

    Attributes:
        step: Its iteration.
        path: Its file or folder.
        earlier: The names of the files that were kept before it.
        begin: When it began.
        end: When it was complete; only the first process knows.
        waited: For how many seconds the training waited, if a thread writes.
    """

    step: int
    path: Path
    earlier: list[str]
    begin: float
    end: float = 0.0
    waited: float | None = None


class Saving:
    """The files of a run's checkpoints.

    Attributes:
        keep: How many of the newest to keep; -1 keeps all, 0 only last.ckpt.
        names: The names of the kept files, oldest first.
        step: The iteration of the newest complete checkpoint; -1 for none.
        newest: Its path; "" for none.
        spared: The path that --ckpt_path names, which is never deleted; None for none or `last`.
    """

    def __init__(self, keep: int) -> None:
        self.keep, self.names = keep, list[str]()
        self.step, self.newest = -1, ""
        self.spared: str | Path | None = None
        self._attempt: _Attempt | None = None

    @property
    def is_writing(self) -> bool:
        """Return True if a thread writes, or `conclude` has not been called since. On all ranks."""
        return self._attempt is not None

    def has_written(self, trainer: L.Trainer) -> bool:
        """Return True if a thread of this process has ended and `conclude` was not called."""
        io = own_io(trainer) if self.is_writing else None
        return io is not None and io.has_written

    def begin(self, trainer: L.Trainer, folder: Path, background: bool) -> str:
        """Write the last iteration, and the logs before it. For all ranks.

        Args:
            trainer: The Trainer.
            folder: The folder of the checkpoints.
            background: Whether a thread may write while the training continues; `is_writing` tells
                whether it does.

        Returns:
            The error message, or "".
        """
        step = trainer.global_step
        path = folder / (f"{step:07d}.ckpt" if self.keep else LAST)
        attempt = _Attempt(step, path, self.names, time.monotonic())
        names = [name for name in self.names if name != path.name]
        self.names = [*names, path.name] if self.keep else names
        old = self._old

        def then() -> None:
            attempt.end = time.monotonic()
            if self.keep:
                on_first(trainer, point, folder / LAST, path)
            for name in old:
                on_first(trainer, delete, folder / name, self.spared)

        what, later = write(trainer, path, then, background)
        if later:
            attempt.waited, self._attempt = time.monotonic() - attempt.begin, attempt
            return ""
        return self._close(attempt, what)

    def conclude(self, trainer: L.Trainer) -> str:
        """Wait for the thread that writes; return its error message, or "". For all ranks."""
        attempt, self._attempt = self._attempt, None
        return self._close(attempt, finish(trainer)) if attempt else ""

    def abandon(self, trainer: L.Trainer) -> None:
        """Wait for the thread of this process, without the other ranks; warn if it has failed."""
        attempt, self._attempt = self._attempt, None
        io = own_io(trainer)
        if attempt and io and io.is_writing:
            try:
                io.finish()
            except Exception as error:  # the run ends with another one
                rank_zero_warn(self._close(attempt, getattr(error, "strerror", "") or str(error)))
            else:
                self._close(attempt, "")

    @property
    def _old(self) -> list[str]:
        """Return the names of the files that are to be deleted."""
        return self.names[: max(len(self.names) - self.keep, 0)] if self.keep >= 0 else []

    def _close(self, attempt: _Attempt, what: str) -> str:
        """Note a complete checkpoint; or return the message of an error."""
        if what:
            self.names = attempt.earlier
            rest = f"{self.newest!r} is unchanged" if self.newest else "there is no earlier one"
            return f"could not save {str(attempt.path)!r} ({what}); {rest}."
        self.names = self.names[len(self._old) :]
        self.step, self.newest = attempt.step, str(attempt.path)
        took = f"{attempt.end - attempt.begin:.1f} s"
        if attempt.waited is not None:
            took += f" (the training waited {attempt.waited:.1f} s)"
        rank_zero_info(f"Saved iteration {attempt.step} in {took}: {attempt.path.name}")
        return ""
