"""Write checkpoints to the run directory, and choose which are kept."""

import math
import time
from pathlib import Path
from typing import Any, get_args
from weakref import proxy

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_warn

from sid_lsg.callbacks.best import Best, Mode
from sid_lsg.callbacks.retention import keep_as, on_first, point
from sid_lsg.callbacks.saving import Saving
from sid_lsg.checkpoints.io import SafeCheckpointIO
from sid_lsg.checkpoints.opening import BEST, GOOD, LAST, OpenCheckpoint, iterations_of, newest
from sid_lsg.checkpoints.record import add_record
from sid_lsg.checkpoints.resume import check_optimizers
from sid_lsg.files.replacing import remove_leftovers
from sid_lsg.loggers import CSVLogger
from sid_lsg.messages.checks import refuse
from sid_lsg.messages.errors import UsageError
from sid_lsg.training.agreement import check_agreement
from sid_lsg.training.callback import Saver, run_callbacks
from sid_lsg.training.run_directory import config_of

_GOES_ON = "Training continues. Make room before the next one."


class Checkpoint(Saver, ModelCheckpoint):
    """Save the fake score, generator, EMA and optimizers; `last.ckpt` is the newest checkpoint.

    Checkpoints do not hold the teacher. Continue a run with `--ckpt_path last` or with the path of
    a checkpoint. `good.ckpt` is the newest checkpoint when the run was last found healthy.
    `best.ckpt` is the checkpoint with the best value of a metric.

    An iteration is saved when the next one starts or the training ends. It has been logged by then,
    so a run that continues from it has the complete log.

    The training waits only while the state is copied to host memory. A thread then writes the file,
    points `last.ckpt` to it and deletes older ones. The next save, `best.ckpt` and the end of the
    run wait for the thread.
    """

    _good_step = -1  # the iteration that was found healthy
    _becomes_good = False  # whether the checkpoint that is being written will be good.ckpt
    _has_good = False  # whether this run has written good.ckpt
    _found_as_last = ""  # the path that `last` stands for

    def __init__(
        self,
        every_n_steps: int = 500,
        keep: int = 1,
        best: str | None = None,
        best_mode: Mode = "min",
        every_minutes: float = 30.0,
        background: bool = True,
    ) -> None:
        """Set when to save and what to keep.

        Args:
            every_n_steps: Save after every so many iterations, and at the end.
            keep: How many of the newest checkpoints to keep; -1 keeps all, 0 only last.ckpt.
            best: Also keep the checkpoint with the best value of this metric, as best.ckpt. A name
                that --metrics logs, for example fid_fast_1k. It is saved when it is scored.
            best_mode: `min` if the smallest value is the best, `max` if the largest is.
            every_minutes: Also save when so many minutes have passed since the last time, so that
                a killed run loses no more of them; 0 for never.
            background: Continue the training while a checkpoint is written, if the host memory has
                room for a copy. Folders of shards are written while the training waits.

        Raises:
            UsageError: If a value is out of range.
        """
        if every_n_steps < 1:
            refuse("checkpoint.every_n_steps", every_n_steps, "at least 1")
        if not 0 <= every_minutes < math.inf:
            refuse("checkpoint.every_minutes", every_minutes, "a finite number of at least 0")
        if keep < -1:
            refuse("checkpoint.keep", keep, "at least -1")
        if best_mode not in get_args(Mode):
            refuse("checkpoint.best_mode", best_mode, "min or max")
        super().__init__(every_n_train_steps=every_n_steps, save_top_k=0)
        self.save_top_k = keep  # for loggers
        self.every_n_steps, self.every_minutes = every_n_steps, every_minutes
        self.background, self._saving = background, Saving(keep)
        self._asked, self._time = False, time.monotonic()
        self.best = Best(best, best_mode) if best else None
        self._opened: OpenCheckpoint | None = None  # the checkpoint to load

    @property
    def state_key(self) -> str:
        """Return one name for all options, which may change when a run is continued."""
        return "Checkpoint"

    def continue_from(self, opened: OpenCheckpoint) -> None:
        """Load an open checkpoint in the next training, instead of opening its file again."""
        self._opened = opened

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Replace Lightning's checkpoint writer, which buffers the whole file in RAM.

        Raises:
            SharedError: If the processes would not start the same run.
        """
        check_agreement(trainer, pl_module, self._opened)
        self._settle(trainer)
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = SafeCheckpointIO()
        if isinstance(trainer.strategy.checkpoint_io, SafeCheckpointIO):
            trainer.strategy.checkpoint_io.opened = self._opened
        self._opened = None  # a deleted file occupies the disk while it is open
        if self.best is not None:
            self.best.setup(trainer)
        if trainer.is_global_zero:
            remove_leftovers(self._folder)

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: Any, checkpoint: dict[str, Any]
    ) -> None:
        """Reject optimizer states of another model, which torch notices late or not at all."""
        optimizers, names = pl_module.new_optimizers(), checkpoint.get("optimizer_names")
        check_optimizers(optimizers, checkpoint["optimizer_states"], names)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note the loaded checkpoint, which is not saved again if it is in this run directory."""
        self._time = time.monotonic()
        if trainer.ckpt_path:
            self._saving.newest = str(trainer.ckpt_path)
            if self._saving.newest != self._found_as_last:
                self._saving.spared = trainer.ckpt_path
            if self._newest_is_here():
                self._saving.step = trainer.global_step
            for logger in trainer.loggers:
                if isinstance(logger, CSVLogger):
                    logger.continue_from(trainer.global_step)
            self._has_good = trainer.strategy.broadcast(self._good_is_of(trainer.global_step))
            if self.best is not None:
                self.best.recall(self._folder, trainer.global_step)

    def on_train_batch_end(self, *_: Any) -> None:
        """Do nothing: the iteration is not logged yet. It is saved when the next one starts."""

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Save the previous iteration if it is due; warn if that fails.

        It is evaluated after that, so no error of an evaluation loses the checkpoint.
        """
        asked, self._asked = self._asked, False
        step = trainer.global_step
        if step > 0 and (asked or step % self.every_n_steps == 0):
            self._try_to_save(trainer, self.background)

    @property
    def wants_to_save(self) -> bool:
        """Return True if `every_minutes` have passed since the last checkpoint."""
        minutes = (time.monotonic() - self._time) / 60
        return bool(self.every_minutes) and minutes >= self.every_minutes

    def has_written(self, trainer: L.Trainer) -> bool:
        """Return True if a thread of this process has written, and `conclude` was not called."""
        return self._saving.has_written(trainer)

    def conclude(self, trainer: L.Trainer) -> None:
        """Wait for the checkpoint that is being written; announce it, or warn. For all ranks."""
        if self._saving.is_writing:
            if failure := self._saving.conclude(trainer):
                rank_zero_warn(f"{failure} {_GOES_ON}")
            else:
                self._announce(trainer)
            self._keep_good(trainer)

    def on_exception(self, trainer: L.Trainer, pl_module: Any, exception: BaseException) -> None:
        """Wait until the file that is being written is complete."""
        self._saving.abandon(trainer)

    def ask(self) -> None:
        """Let the last complete iteration be saved."""
        self._asked, self._time = True, time.monotonic()

    def on_iterated(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Save the iteration if it was found the best; keep it if it was found good."""
        if self.best is not None:
            before = self.best.state_dict()
            if self.best.judge(trainer):
                if self._try_to_save(trainer, background=False):
                    self._keep_best(trainer, self.best)
                else:
                    self.best.load_state_dict(before)
        if self._good_step == trainer.global_step:
            self._good_step, self._becomes_good = -1, True
        if not self._saving.is_writing:
            self._keep_good(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save the last iteration, whatever the schedule."""
        self.save(trainer)

    def on_trained(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep the last checkpoint as the best if its final scores are."""
        if self._saving.step < 0:  # the run was complete when it began
            self.on_train_start(trainer, pl_module)
            self.save(trainer)
        saved = self._saving.step == trainer.global_step
        if saved and self.best is not None and self.best.judge(trainer):
            self._keep_best(trainer, self.best)

    def save(self, trainer: L.Trainer) -> Path:
        """Save the current state unless it is saved already, and return the file. For all ranks.

        Raises:
            UsageError: If that fails. Earlier checkpoints are kept.
        """
        if failure := self._save(trainer, background=False):
            there = self._saving.newest
            then = "continue from there with --ckpt_path last" if there else "start again"
            raise UsageError(f"--trainer.default_root_dir: {failure} Make room, then {then}.")
        return Path(self._saving.newest)

    def mark_good(self, trainer: L.Trainer) -> None:
        """Keep the newest checkpoint as `good.ckpt`, even when newer ones are written.

        If this iteration is due to be saved, its own checkpoint is kept.
        """
        self._good_step = trainer.global_step

    def return_to_good(self, trainer: L.Trainer) -> Path | None:
        """Make `last.ckpt` the last good checkpoint, and return its file. For all ranks.

        Return None and change nothing if neither this run nor the one it continues has one.
        """
        self.conclude(trainer)
        good = self._folder / GOOD
        there = trainer.strategy.broadcast(good.exists())
        if not (there and self._has_good):
            return None
        on_first(trainer, point, self._folder / LAST, good)
        trainer.strategy.barrier()
        return good

    def state_dict(self) -> dict[str, Any]:
        """Return the names of the kept files, and the best value."""
        return {"saved": self._saving.names, "best": self.best.state_dict() if self.best else None}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the names of the kept files, and the best value."""
        self._saving.names = state_dict.get("saved", [])
        if self.best is not None:
            self.best.load_state_dict(state_dict.get("best") or {})

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add versions and configuration, and count only the completed iterations."""
        add_record(checkpoint, config_of(trainer))

    def _try_to_save(self, trainer: L.Trainer, background: bool) -> bool:
        """Save, or warn that it failed; return whether it has not failed yet. For all ranks."""
        if failure := self._save(trainer, background):
            rank_zero_warn(f"{failure} {_GOES_ON}")
        return not failure

    def _keep_good(self, trainer: L.Trainer) -> None:
        """Keep the newest checkpoint as `good.ckpt` if a healthy iteration has waited for it."""
        if self._becomes_good and self._newest_is_here():
            self._has_good = True
            on_first(trainer, keep_as, Path(self._saving.newest), self._folder / GOOD)
        self._becomes_good = False

    def _save(self, trainer: L.Trainer, background: bool) -> str:
        """Save unless the iteration is saved; return the error message, or "". For all ranks.

        In the background, `conclude` warns of errors that come later.
        """
        self.conclude(trainer)
        if trainer.global_step == self._saving.step:
            return ""
        self._time = time.monotonic()
        failure = self._saving.begin(trainer, self._folder, background)
        if not (failure or self._saving.is_writing):
            self._announce(trainer)
        return failure

    def _announce(self, trainer: L.Trainer) -> None:
        """Tell callbacks and loggers that a checkpoint is complete."""
        self.last_model_path = self.best_model_path = self._saving.newest
        for callback in run_callbacks(trainer):
            callback.on_checkpoint(trainer)
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                logger.after_save_checkpoint(proxy(self))

    def _keep_best(self, trainer: L.Trainer, best: Best) -> None:
        self.best_model_path = str(self._folder / BEST)
        on_first(trainer, keep_as, Path(self._saving.newest), self._folder / BEST)
        on_first(trainer, best.save, self._folder)

    def _good_is_of(self, step: int) -> bool:
        """Return True if good.ckpt is of this iteration or an earlier one."""
        good = iterations_of(self._folder / GOOD)
        return good is not None and good <= step

    def _newest_is_here(self) -> bool:
        return Path(self._saving.newest).parent.resolve() == self._folder.resolve()

    @property
    def _folder(self) -> Path:
        return Path(str(self.dirpath))

    def _settle(self, trainer: L.Trainer) -> None:
        self.dirpath = str(Path(trainer.default_root_dir) / "checkpoints")

    def _find_last_checkpoints(self, trainer: L.Trainer) -> set[str]:
        """Return the newest valid checkpoint of this run for Lightning."""
        self._settle(trainer)
        found = self._opened or newest(self._folder)
        self._opened = found
        if found is None:
            rank_zero_warn(
                f"--ckpt_path last: there is no checkpoint in {str(self._folder)!r} yet. "
                "A new training starts."
            )
            return set()
        if found.passed_over:
            rank_zero_warn(
                f"--ckpt_path last: {'; '.join(found.passed_over)}. The run continues from "
                f"{str(found.path.resolve())!r}."
            )
        self._found_as_last = str(found.path)
        return {self._found_as_last}
