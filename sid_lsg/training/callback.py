"""Base classes of the callbacks: their hooks and what they offer to each other."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import lightning as L

Role = TypeVar("Role", bound="RunCallback")


class RunCallback(L.Callback):
    """A callback with hooks that Lightning lacks. By default they do nothing."""

    def on_trained(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Run after the `on_train_end` of all callbacks.

        The last checkpoint is saved then, and the networks are still on their device (Lightning
        moves them to the CPU before `on_fit_end`). It is also called if the run was already
        complete.
        """

    def on_saved(self, trainer: L.Trainer) -> None:
        """Run after a checkpoint was saved at the start of an iteration."""

    def on_ended(self, trainer: L.Trainer) -> None:
        """Run last, after the `teardown` of all callbacks."""

    def summary(self) -> dict[str, Any]:
        """Return entries for the run's summary.json."""
        return {}


class Saver(RunCallback):
    """The callback that saves checkpoints."""

    def save(self, trainer: L.Trainer) -> Path:
        """Save the current state unless it is already saved; return the file. For all ranks.

        Raises:
            UsageError: If writing fails. Earlier checkpoints are kept.
        """
        raise NotImplementedError

    def mark_good(self, trainer: L.Trainer) -> None:
        """Keep the newest checkpoint as `good.ckpt`, even when newer ones are written."""
        raise NotImplementedError

    def return_to_good(self, trainer: L.Trainer) -> Path | None:
        """Make `last.ckpt` the last good checkpoint; return its file. For all ranks.

        Return None and change nothing if neither this run nor the one it continues has one.
        """
        raise NotImplementedError


class Scorer(RunCallback):
    """The callback that scores the generator.

    Attributes:
        latest: The newest scores, by the names under which they are logged.
    """

    latest: Mapping[str, float]

    @property
    def measures(self) -> bool:
        """Return True if the callback scores anything in this run."""
        raise NotImplementedError


def find(trainer: L.Trainer, role: type[Role]) -> Role | None:
    """Return the first callback of a class; None if there is none."""
    return next((c for c in trainer.callbacks if isinstance(c, role)), None)


def run_callbacks(trainer: L.Trainer) -> list[RunCallback]:
    """Return the callbacks that are `RunCallback`s."""
    return [c for c in trainer.callbacks if isinstance(c, RunCallback)]
