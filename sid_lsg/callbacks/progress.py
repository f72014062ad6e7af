"""A progress bar that counts iterations."""

import sys
from contextlib import suppress
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import TQDMProgressBar

_Shown = dict[str, int | str | float | dict[str, float]]


class Progress(TQDMProgressBar):
    """Show iterations done and to do, the losses, and images per second."""

    def __init__(self, refresh_rate: int | None = None) -> None:
        """Set how often the bar is redrawn.

        Args:
            refresh_rate: Redraw every so many iterations; 0 for no bar. By default every
                iteration on a terminal, every 20th elsewhere.
        """
        self._row, self._shown = -1, _Shown()
        super().__init__(
            refresh_rate=refresh_rate
            if refresh_rate is not None
            else (1 if sys.stderr.isatty() else 20)
        )

    def on_train_start(self, trainer: L.Trainer, *_: Any) -> None:
        """Count the iterations of the whole run, also in a continued run, which starts no epoch."""
        super().on_train_start(trainer, *_)
        self._count_iterations(trainer)

    def on_train_epoch_start(self, *_: Any) -> None:
        """Do nothing: the bar counts the iterations of the run instead of those of an epoch."""

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        """Count the iteration; `index` begins again in each of Lightning's epochs."""
        with suppress(OSError):  # a closed terminal
            super().on_train_batch_end(trainer, pl_module, outputs, batch, trainer.global_step - 1)

    def _count_iterations(self, trainer: L.Trainer) -> None:
        bar = self.train_progress_bar
        # The rate is that of this run's own iterations.
        bar.initial = trainer.global_step
        bar.reset(total=trainer.max_steps if trainer.max_steps > 0 else None)
        bar.n = bar.last_print_n = trainer.global_step
        bar.set_description("distilling")

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> _Shown:
        """Return the losses of the newest row of the log, without Lightning's version number.

        They are read once per row, since reading them waits for the device.
        """
        row = trainer.global_step // max(trainer.log_every_n_steps, 1)
        if row != self._row:
            self._row, self._shown = row, super().get_metrics(trainer, pl_module)
            self._shown.pop("v_num", None)
        return self._shown
