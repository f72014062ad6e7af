"""The distilled generator as a folder for stock diffusers."""

import shutil
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn

EXPORT_FOLDER = "generator"


class Export(L.Callback):
    """At the end of training, save the averaged generator to the run directory's `generator/`.

    Stock diffusers samples the folder in one step, with no code of this project:
    `DiffusionPipeline.from_pretrained(folder)(prompt, num_inference_steps=1, guidance_scale=0)`.
    """

    @rank_zero_only
    def on_train_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Save under a temporary name, then rename."""
        if pl_module.num_steps > 1:
            rank_zero_warn(
                f"The generator was trained with {pl_module.num_steps} steps; the exported folder "
                "samples it in one. `SiDLSG.generate` samples it as it was trained."
            )
        folder = Path(trainer.default_root_dir) / EXPORT_FOLDER
        temporary = folder.with_name(folder.name + ".tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        pl_module.teacher.save_generator(pl_module.ema, temporary, pl_module.t_init)
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
