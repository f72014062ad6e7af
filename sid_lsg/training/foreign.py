"""Let callbacks of other packages fail without losing the state of the training."""

import functools
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.exceptions import _TunerExitException

from sid_lsg.loggers import Tolerance
from sid_lsg.messages.errors import UsageError
from sid_lsg.messages.words import in_a_line

_OWN = __name__.partition(".")[0]
_HOOKS = sorted(
    name for name in dir(L.Callback) if name.startswith("on_") or name in ("state_dict", "teardown")
)
_REMEDY = "Correct or remove it."


class Guard:
    """Catch what foreign callbacks raise, so that the run can end after an iteration, saved.

    A callback that has raised is not called again.

    Attributes:
        active: True while there is a state to save; before, an error ends the run at once.
        failure: The first error of a callback in words, "" for none.
        loggers: The loggers' failures, which do not end a run.
    """

    def __init__(self, trainer: L.Trainer) -> None:
        """Wrap the hooks of the foreign callbacks."""
        self.active, self.failure = False, ""
        self._trainer = trainer
        self.loggers = Tolerance(trainer.loggers)
        for callback in trainer.callbacks:
            if is_foreign(callback):
                self._wrap(callback)

    def check(self) -> None:
        """Raise an error that was caught after the last iteration, or that of a foreign logger.

        Raises:
            UsageError: If there was one.
        """
        failure, self.failure = self.failure or " ".join(self.loggers.failures), ""
        if failure:
            raise UsageError(f"{failure} The results of the run are complete. {_REMEDY}")

    def _wrap(self, callback: L.Callback) -> None:
        broken: list[str] = []
        for hook in _HOOKS:
            setattr(callback, hook, self._guarded(callback, hook, broken))

    def _guarded(self, callback: L.Callback, hook: str, broken: list[str]) -> Callable[..., Any]:
        function: Callable[..., Any] = getattr(callback, hook)

        @functools.wraps(function)
        def guarded(*arguments: Any, **options: Any) -> Any:
            nothing: Any = {} if hook == "state_dict" else None
            if broken:
                return nothing
            try:
                return function(*arguments, **options)
            except (_TunerExitException, UsageError):
                raise
            except (Exception, SystemExit, KeyboardInterrupt) as error:
                if not self.active and hook not in ("on_exception", "teardown"):
                    raise UsageError(
                        f"{self._describe(callback, hook, error)} {_REMEDY}"
                    ) from error
                broken.append(hook)
                if not self.failure:
                    self.failure = self._describe(callback, hook, error)
                    rank_zero_warn(f"{self.failure} It is not called again.")
                return nothing

        return guarded

    def _describe(self, callback: L.Callback, hook: str, error: BaseException) -> str:
        last = traceback.extract_tb(error.__traceback__)[-1]
        return (
            f"--trainer.callbacks: {type(callback).__name__} raised {type(error).__name__} in "
            f"{hook}, after iteration {self._trainer.global_step} "
            f"({Path(last.filename).name}, line {last.lineno}): {in_a_line(error)}."
        )


def is_foreign(part: object) -> bool:
    """Return True for an object whose class is not of this package."""
    return type(part).__module__.partition(".")[0] != _OWN
