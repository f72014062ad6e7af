"""The distilled generator as a folder for stock diffusers."""

import shutil
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn
from torch import nn

from sid_lsg.errors import UsageError

EXPORT_FOLDER = "generator"


class Export(L.Callback):
    """At the end of training, save the averaged generator to the run directory's `generator/`.

    Stock diffusers samples the folder in one step, with no code of this project:
    `DiffusionPipeline.from_pretrained(folder)(prompt, num_inference_steps=1, guidance_scale=0)`.
    """

    _failure: str | None = None

    def on_train_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Put the weights together, if they are spread over the processes, and save."""
        if pl_module.num_steps > 1:
            rank_zero_warn(
                f"The generator was trained with {pl_module.num_steps} steps; the exported folder "
                "samples it in one. `SiDLSG.generate` samples it as it was trained."
            )
        with pl_module.full_parameters(pl_module.ema) as network:
            try:
                self._save(Path(trainer.default_root_dir) / EXPORT_FOLDER, network, pl_module)
            except OSError as error:
                self._failure = error.strerror or str(error)

    def on_fit_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Say that it failed: now, when the last checkpoint has had its chance.

        Raises:
            UsageError: If the folder could not be written.
        """
        if failure := trainer.strategy.broadcast(self._failure):
            raise UsageError(
                f"The generator could not be written to {trainer.default_root_dir} ({failure}). "
                "Make room, and run the same command with --ckpt_path last."
            )

    @rank_zero_only
    def _save(self, folder: Path, network: nn.Module, module: Any) -> None:
        """Save under a temporary name, then rename."""
        temporary = folder.with_name(folder.name + ".tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        module.teacher.save_generator(network, temporary, module.t_init)
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
