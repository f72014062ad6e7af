"""Keep a run alive when one of its loggers fails, such as W&B when its service has died."""

import functools
from collections.abc import Callable, Iterable
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_warn

from sid_lsg.loggers.csv_logger import CSVLogger
from sid_lsg.loggers.wandb_logger import WandbLogger
from sid_lsg.messages.words import in_a_line

_METHODS = (
    "log_metrics", "log_hyperparams", "log_graph", "log_image", "log_images", "log_table",
    "after_save_checkpoint", "save", "finalize",
)  # fmt: skip


class Tolerance:
    """Let loggers fail with one warning each; a failed one is tried again at a checkpoint.

    The file of the CSVLogger is part of a run's state, so its errors are not caught here.

    Attributes:
        failures: The first failure of each foreign logger, in words. W&B is a service, whose
            failures are no mistake in the run.
    """

    def __init__(self, loggers: Iterable[Logger]) -> None:
        """Wrap the methods of the loggers."""
        self.failures: list[str] = []
        self._broken: dict[int, Logger] = {}
        self._warned: set[int] = set()
        for logger in loggers:
            if not isinstance(logger, CSVLogger):
                for name in _METHODS:
                    if callable(getattr(logger, name, None)):
                        setattr(logger, name, self._tolerated(logger, name))

    def revive(self) -> None:
        """Try the failed loggers again. A logger that fails in it stays as it is."""
        for logger in [*self._broken.values()]:
            try:
                if isinstance(logger, WandbLogger):
                    logger.restart()
            except Exception:  # wandb raises anything
                continue
            self._broken.pop(id(logger))

    def _tolerated(self, logger: Logger, name: str) -> Callable[..., Any]:
        function: Callable[..., Any] = getattr(logger, name)

        @functools.wraps(function)
        def tolerated(*arguments: Any, **options: Any) -> Any:
            if id(logger) in self._broken:
                return None
            try:
                return function(*arguments, **options)
            except Exception as error:  # a logger may raise anything
                self._broken[id(logger)] = logger
                self._report(logger, name, error)

        return tolerated

    def _report(self, logger: Logger, name: str, error: Exception) -> None:
        if id(logger) in self._warned:
            return
        self._warned.add(id(logger))
        what = (
            f"--trainer.logger: {type(logger).__name__} raised {type(error).__name__} in {name}: "
            f"{in_a_line(error)}."
        )
        if not isinstance(logger, WandbLogger):
            self.failures.append(what)
        rank_zero_warn(f"{what} The run goes on; the logger is tried again at each checkpoint.")
