"""Export the generator for stock diffusers."""

import json
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import nn

from sid_lsg.callbacks.schedule import due, images_seen
from sid_lsg.distributed.processes import meet
from sid_lsg.export.card import write_card
from sid_lsg.export.facts import Facts, facts_of, teacher_license
from sid_lsg.export.folder import save_pipeline
from sid_lsg.export.lora_file import fit_teacher
from sid_lsg.export.snapshots import save_snapshot
from sid_lsg.files.replacing import replacing
from sid_lsg.loggers import warning_if_unwritten
from sid_lsg.messages.checks import refuse
from sid_lsg.messages.errors import UsageError
from sid_lsg.networks.lora import LORA_FOLDER, save_lora
from sid_lsg.training.callback import RunCallback, Saver, find
from sid_lsg.training.run_directory import config_of

EXPORT_FOLDER = "generator"
_HISTORY = "generators"  # exports during the training
_THEN = "Training continues."


class Export(RunCallback):
    """Save the generator's EMA to `generator/` in the run directory when the training ends.

    Stock diffusers samples the folder, as its README.md explains. A generator of several steps also
    needs the scheduler that is saved with it. A generator trained with LoRA is saved with merged
    weights, and its adapters are saved in `lora/`.
    """

    _tried = False
    _failure: str | None = None
    _facts: Facts | None = None

    def __init__(self, every_n_steps: int = 0) -> None:
        """Set how often the generator is saved during the training.

        Args:
            every_n_steps: Also save the EMA every so many iterations, in `generators/step-N/`; 0
                to save it only at the end. For Stable Diffusion 1.5 a folder takes 4.3 GB, a
                quarter of a checkpoint.
        """
        if every_n_steps < 0:
            refuse("export.every_n_steps", every_n_steps, "at least 0")
        self.every_n_steps = every_n_steps

    def on_iterated(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Save the EMA and snapshots of averages on schedule; warn if the disk is full."""
        if due(trainer, pl_module.ema_options.snapshot_images):
            what = "A snapshot of the EMA"
            with pl_module.snapshot() as averages, warning_if_unwritten(what, _THEN):
                self._save_snapshot(trainer, averages)
        if not self.every_n_steps or trainer.global_step % self.every_n_steps:
            return
        folder = f"{_HISTORY}/step-{trainer.global_step:07d}"
        with pl_module.averaged() as network, warning_if_unwritten(folder, _THEN):
            self._save(trainer, network, pl_module, folder)
        meet()

    def on_train_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Gather sharded weights, and save, after the last checkpoint."""
        if saver := find(trainer, Saver):  # its own turn comes after this one's
            saver.save(trainer)
        self._tried, self._failure = True, None
        with pl_module.averaged() as network:
            try:
                self._facts = self._save(trainer, network, pl_module, EXPORT_FOLDER)
            except OSError as error:
                self._failure = error.strerror or str(error)
        meet()

    def on_trained(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Report a failed export, after the last checkpoint has been saved.

        A run that was already complete exports here, since its export may have failed before.

        Raises:
            UsageError: If the folder could not be written.
        """
        if not self._tried:
            self.on_train_end(trainer, pl_module)
        self._tried = False
        if failure := trainer.strategy.broadcast(self._failure):
            raise UsageError(
                f"The generator could not be written to {trainer.default_root_dir} ({failure}). "
                "Make room, and run the same command with --ckpt_path last."
            )

    def summary(self) -> dict[str, Any]:
        """Return the name of the exported folder."""
        return {"export": EXPORT_FOLDER}

    def teardown(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        """Add the final scores to the model card, after all callbacks have ended."""
        root = Path(trainer.default_root_dir)
        if self._facts is None or not (root / "summary.json").is_file():
            return
        summary = json.loads((root / "summary.json").read_text(encoding="utf-8"))
        if summary.get("iterations") == self._facts.iterations:  # otherwise it is of an earlier end
            with suppress(OSError):  # the card then has no scores
                write_card(root / EXPORT_FOLDER, replace(self._facts, summary=summary))

    @rank_zero_only
    def _save_snapshot(self, trainer: L.Trainer, averages: dict[float, nn.Module]) -> None:
        save_snapshot(Path(trainer.default_root_dir), images_seen(trainer), averages)

    @rank_zero_only
    def _save(self, trainer: L.Trainer, network: nn.Module, module: Any, name: str) -> Facts:
        """Save under a temporary name, then rename; return the facts of the model card."""
        with replacing(Path(trainer.default_root_dir, name)) as folder:
            teacher = module.teacher
            settings = module.t_init, module.num_steps, torch.float32, module.noise
            save_pipeline(teacher, network, folder, *settings)
            has_lora = fit_teacher(network, config_of(trainer))
            if has_lora:
                save_lora(network, teacher.network_name, folder / LORA_FOLDER)
            facts = self._gather(trainer, module, has_lora=has_lora)
            write_card(folder, facts)
        return facts

    def _gather(self, trainer: L.Trainer, module: Any, **known: Any) -> Facts:
        """Collect the facts of the model card, and combine them with other known facts."""
        known["iterations"] = trainer.global_step
        if config := config_of(trainer):
            known["config"] = config
            known["license"] = teacher_license(config["model"]["teacher"])
        settings = module.t_init, module.num_steps, module.noise
        return facts_of(module.teacher, *settings, **known)
