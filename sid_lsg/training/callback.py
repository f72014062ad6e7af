"""Base classes of the callbacks: their hooks and what they offer to each other."""

from collections.abc import Callable, Iterator, Mapping, Sequence
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

    def on_iterated(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Evaluate the last complete iteration; its checkpoint is saved if it is due.

        This runs before the next iteration or at the end of the training. A run that continues from
        the checkpoint runs it again, so an evaluation that was interrupted is made up for.
        """

    def on_checkpoint(self, trainer: L.Trainer) -> None:
        """Run when a checkpoint is complete, which may be some iterations later."""

    def on_ready(self, trainer: L.Trainer) -> None:
        """Run last before an iteration: checkpoints are saved and evaluations done."""

    def on_ended(self, trainer: L.Trainer) -> None:
        """Run last, after the `teardown` of all callbacks."""

    @property
    def own_prompts(self) -> Sequence[str]:
        """Return the prompts that the callback samples besides those of the data module."""
        return ()

    def summary(self) -> dict[str, Any]:
        """Return entries for the run's summary.json."""
        return {}


class Leaver(RunCallback):
    """The callback that ends a run at a signal."""

    def leave(self, trainer: L.Trainer) -> None:
        """End the run if it has received a signal, between two batches of an evaluation.

        For all ranks.

        Raises:
            Interrupted: To end the run, with its state saved.
        """
        raise NotImplementedError


class Saver(RunCallback):
    """The callback that saves checkpoints."""

    def save(self, trainer: L.Trainer) -> Path:
        """Save the current state unless it is already saved; return the file. For all ranks.

        Raises:
            UsageError: If writing fails. Earlier checkpoints are kept.
        """
        raise NotImplementedError

    @property
    def wants_to_save(self) -> bool:
        """Return True if the time of the next checkpoint has come. Ranks may differ."""
        raise NotImplementedError

    def has_written(self, trainer: L.Trainer) -> bool:
        """Return True if this process has written a checkpoint that `conclude` is to announce."""
        raise NotImplementedError

    def conclude(self, trainer: L.Trainer) -> None:
        """Wait for the checkpoint that is being written; announce it. For all ranks."""
        raise NotImplementedError

    def ask(self) -> None:
        """Let the last complete iteration be saved. For all ranks."""
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


def leaving(trainer: L.Trainer, sampler: Callable[..., Any]) -> Callable[..., Any]:
    """Return a sampler that ends the run before its next batch if a signal was received."""
    leaver = find(trainer, Leaver)

    def sample(*arguments: Any, **options: Any) -> Any:
        if leaver is not None:
            leaver.leave(trainer)
        return sampler(*arguments, **options)

    return sample


def run_callbacks(trainer: L.Trainer) -> list[RunCallback]:
    """Return the callbacks that are `RunCallback`s."""
    return [c for c in trainer.callbacks if isinstance(c, RunCallback)]


def all_prompts(trainer: L.Trainer) -> Iterator[str]:
    """Yield every prompt that a run may sample, with repetitions."""
    yield from trainer.datamodule.all_prompts()
    for callback in run_callbacks(trainer):
        yield from callback.own_prompts
