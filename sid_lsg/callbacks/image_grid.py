"""The same prompts and seeds, again and again, while the generator learns."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from sid_lsg.checks import refuse
from sid_lsg.images import grid, save_png


def spread(prompts: Sequence[str], count: int) -> list[str]:
    """Choose `count` prompts at even distances; repeat them where there are fewer."""
    if len(prompts) <= count:
        return [prompts[i % len(prompts)] for i in range(count)]
    return [prompts[i * len(prompts) // count] for i in range(count)]


class ImageGrid(L.Callback):
    """Draw a grid of the averaged generator's images of held-out prompts.

    PNG files in the run directory's `grids/`, and the W&B run where there is one. The first grid
    is the untrained generator's.
    """

    def __init__(self, every_n_steps: int = 500, num_images: int = 16) -> None:
        """Choose how often and how many.

        Args:
            every_n_steps: A grid after every so many iterations; 0 for none.
            num_images: Images in a grid, with seeds 0, 1, ...; prompts are spread over the held-out
                ones.
        """
        if every_n_steps < 0:
            refuse("image_grid.every_n_steps", every_n_steps, "at least 0")
        if num_images < 1:
            refuse("image_grid.num_images", num_images, "at least 1")
        self.every_n_steps, self.num_images = every_n_steps, num_images

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Show where the training starts."""
        if self.every_n_steps:
            self._draw(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Show the progress on schedule."""
        if self.every_n_steps and trainer.global_step % self.every_n_steps == 0:
            self._draw(trainer, pl_module)

    @rank_zero_only
    def _draw(self, trainer: L.Trainer, module: Any) -> None:
        prompts = spread(trainer.datamodule.heldout_prompts, self.num_images)
        latents = module.generate(prompts, range(self.num_images))
        picture = grid(module.teacher.decode(latents))
        folder = Path(trainer.default_root_dir) / "grids"
        save_png(picture, folder / f"step-{trainer.global_step:07d}.png")
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_image("grid", [picture], step=trainer.global_step)
