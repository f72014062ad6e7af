"""What callbacks of a run offer to the module, and to each other."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import lightning as L

Role = TypeVar("Role", bound="RunCallback")


class RunCallback(L.Callback):
    """A callback with the hooks that Lightning lacks. Each does nothing by default."""

    def on_trained(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Do the last work of a run, when all callbacks have had their `on_train_end`.

        The last checkpoint is saved by then, and the networks are still on their device: before
        Lightning's own `on_fit_end` they are moved to the CPU. A run that was complete when it
        began calls this too.
        """

    def on_saved(self, trainer: L.Trainer) -> None:
        """Continue after a checkpoint has been saved at the start of an iteration."""

    def summary(self) -> dict[str, Any]:
        """Return what the callback adds to the run's summary.json."""
        return {}


class Saver(RunCallback):
    """The callback that saves checkpoints."""

    def save(self, trainer: L.Trainer) -> Path:
        """Save the present state, unless it is saved already; return the file. For all ranks.

        Raises:
            UsageError: If that is impossible. What was saved before is still there.
        """
        raise NotImplementedError

    def mark_good(self, trainer: L.Trainer) -> None:
        """Keep the newest checkpoint as `good.ckpt`, whatever is saved and deleted later."""
        raise NotImplementedError

    def return_to_good(self, trainer: L.Trainer) -> Path | None:
        """Make `last.ckpt` the last good checkpoint; return its file. For all ranks.

        Without a good checkpoint in this run, or in the one it continues, nothing changes.
        """
        raise NotImplementedError


class Scorer(RunCallback):
    """The callback that scores the generator.

    Attributes:
        latest: The newest scores, by the names that they are logged under.
    """

    latest: Mapping[str, float]

    @property
    def measures(self) -> bool:
        """Return True if it scores anything in this run."""
        raise NotImplementedError


def find(trainer: L.Trainer, role: type[Role]) -> Role | None:
    """Return the first of a run's callbacks that has a role; None if none has."""
    return next((c for c in trainer.callbacks if isinstance(c, role)), None)


def run_callbacks(trainer: L.Trainer) -> list[RunCallback]:
    """Return a run's callbacks that have these hooks."""
    return [c for c in trainer.callbacks if isinstance(c, RunCallback)]
