"""Log speed and memory."""

import resource
import sys
import time
from typing import Any

import lightning as L
import torch

from sid_lsg.training.callback import RunCallback


class Throughput(RunCallback):
    """Log images per second and peak memory, as often as the module logs.

    The time between two iterations, in which other callbacks evaluate and save, is not counted.
    """

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Reset the counters."""
        self._images, self._seconds = 0, 0.0

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Start the clock of one iteration."""
        self._start = time.perf_counter()

    def on_ready(self, trainer: L.Trainer) -> None:
        """Restart the clock, so that saving and evaluating are not counted."""
        self._start = time.perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop the clock, and log the mean since the last row."""
        every = trainer.log_every_n_steps
        last = bool(every) and trainer.global_step % every == 0
        if last and pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)  # the queued work belongs to this time
        self._seconds += time.perf_counter() - self._start
        self._images += len(batch.generator) * trainer.world_size
        if last:
            pl_module.log("images_per_s", self._images / self._seconds, prog_bar=True)
            pl_module.log("peak_memory_gib", _peak_memory_gib(pl_module.device))
            self._images, self._seconds = 0, 0.0


def _peak_memory_gib(device: torch.device) -> float:
    """Return the peak memory of the tensors on a GPU, or of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
