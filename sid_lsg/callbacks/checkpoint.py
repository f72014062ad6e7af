"""Checkpoints in the run directory."""

import os
import shutil
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from sid_lsg.checks import refuse

GOOD = "good.ckpt"
LAST = "last.ckpt"


class Checkpoint(ModelCheckpoint):
    """Save the fake score, generator, average and optimizers; `last.ckpt` is the newest.

    Checkpoints do not hold the teacher. Continue a run with `--ckpt_path last`, or a file's path.
    `good.ckpt`, where there is one, is the newest checkpoint when the run was last found healthy.
    """

    _good_step = -1  # the iteration that was found healthy
    _has_good = False  # whether good.ckpt is of this run

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

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Save on schedule."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        self._keep_good(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save the last iteration too, wherever the schedule stands."""
        self.save(trainer)
        self._keep_good(trainer)
        super().on_train_end(trainer, pl_module)

    def save(self, trainer: L.Trainer) -> Path:
        """Save the present state, unless it is saved already; return the file. For all ranks."""
        if trainer.global_step != self._last_global_step_saved:
            candidates = self._monitor_candidates(trainer)
            self._save_topk_checkpoint(trainer, candidates)
            self._save_last_checkpoint(trainer, candidates)
        return Path(self._last_checkpoint_saved)

    def mark_good(self, trainer: L.Trainer) -> None:
        """Keep the newest checkpoint as `good.ckpt`, whatever is saved and deleted later.

        It is kept when this iteration's own checkpoint, if one is due, has been saved: callbacks
        that judge a state come before those that save it.
        """
        self._good_step = trainer.global_step

    def return_to_good(self, trainer: L.Trainer) -> Path | None:
        """Make `last.ckpt` the last good checkpoint; return its file. For all ranks.

        Without a good checkpoint in this run, or in the one it continues, nothing changes.
        """
        folder = Path(str(self.dirpath))
        good, last = folder / GOOD, folder / LAST
        if not (self._has_good or (trainer.ckpt_path and good.exists())):
            return None
        self._link_checkpoint(trainer, str(good), str(last))
        return good

    def _keep_good(self, trainer: L.Trainer) -> None:
        if self._good_step != trainer.global_step or not self._last_checkpoint_saved:
            return
        self._has_good = True
        if trainer.is_global_zero:
            good = Path(str(self.dirpath)) / GOOD
            temporary = good.with_name(good.name + ".tmp")
            temporary.unlink(missing_ok=True)
            try:
                os.link(self._last_checkpoint_saved, temporary)  # a second name costs no space
            except OSError:  # not every file system has hard links
                shutil.copy(self._last_checkpoint_saved, temporary)
            temporary.replace(good)

    def _settle(self, trainer: L.Trainer) -> None:
        self.dirpath = str(Path(trainer.default_root_dir) / "checkpoints")

    def _find_last_checkpoints(self, trainer: L.Trainer) -> set[str]:
        """Look where this run saves: Lightning would ask the logger for the folder."""
        self._settle(trainer)
        return super()._find_last_checkpoints(trainer)

    def _monitor_candidates(self, trainer: L.Trainer) -> dict[str, Tensor]:
        """Name files by the iteration; the logged `step` is that of the last log."""
        return super()._monitor_candidates(trainer) | {"step": torch.tensor(trainer.global_step)}
