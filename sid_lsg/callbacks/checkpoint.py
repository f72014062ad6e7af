"""Checkpoints in the run directory."""

from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from sid_lsg.checks import refuse


class Checkpoint(ModelCheckpoint):
    """Save the fake score, generator, average and optimizers; `last.ckpt` is the newest.

    Checkpoints do not hold the teacher. Continue a run with `--ckpt_path last`, or a file's path.
    """

    def __init__(self, every_n_steps: int = 500, keep: int = 1) -> None:
        """Choose when to save.

        Args:
            every_n_steps: Save after every so many iterations, and at the end.
            keep: How many of the newest checkpoints to keep; -1 keeps all, 0 only last.ckpt.
        """
        if every_n_steps < 1:
            refuse("checkpoint.every_n_steps", every_n_steps, "at least 1")
        if keep < -1:
            refuse("checkpoint.keep", keep, "at least -1")
        super().__init__(
            filename="{step:07d}",
            every_n_train_steps=every_n_steps,
            monitor="step",
            mode="max",
            save_top_k=keep,
            save_last="link",
            auto_insert_metric_name=False,
            enable_version_counter=False,
        )

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Save inside the run directory."""
        self._settle(trainer)
        super().setup(trainer, pl_module, stage)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save the last iteration too, wherever the schedule stands."""
        if trainer.global_step != self._last_global_step_saved:
            candidates = self._monitor_candidates(trainer)
            self._save_topk_checkpoint(trainer, candidates)
            self._save_last_checkpoint(trainer, candidates)
        super().on_train_end(trainer, pl_module)

    def _settle(self, trainer: L.Trainer) -> None:
        self.dirpath = str(Path(trainer.default_root_dir) / "checkpoints")

    def _find_last_checkpoints(self, trainer: L.Trainer) -> set[str]:
        """Look where this run saves: Lightning would ask the logger for the folder."""
        self._settle(trainer)
        return super()._find_last_checkpoints(trainer)

    def _monitor_candidates(self, trainer: L.Trainer) -> dict[str, Tensor]:
        """Name files by the iteration; the logged `step` is that of the last log."""
        return super()._monitor_candidates(trainer) | {"step": torch.tensor(trainer.global_step)}
