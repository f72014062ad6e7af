"""Draw images of the same prompts and seeds during the training."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L

from sid_lsg.callbacks.prompts import spread
from sid_lsg.images.pixels import grid, save_png, to_pil
from sid_lsg.loggers import log_images, warning_if_unwritten
from sid_lsg.messages.checks import refuse
from sid_lsg.training.callback import RunCallback


class ImageGrid(RunCallback):
    """Draw a grid of images from the generator's EMA, for held-out or chosen prompts.

    The grids are PNG files in `grids/` in the run directory. W&B shows the images with their
    prompts, TensorBoard the grid. The first grid is of the untrained generator.
    """

    def __init__(
        self, every_n_steps: int = 500, num_images: int = 16, prompts: list[str] | None = None
    ) -> None:
        """Set how often to draw, and which images.

        Args:
            every_n_steps: Draw a grid every so many iterations; 0 for none.
            num_images: Images in a grid, with seeds 0, 1, ...
            prompts: Prompts, for example ["a red dress", "a black boot"], which are repeated until
                there are num_images; by default a selection of the held-out ones.
        """
        if every_n_steps < 0:
            refuse("image_grid.every_n_steps", every_n_steps, "at least 0")
        if num_images < 1:
            refuse("image_grid.num_images", num_images, "at least 1")
        if prompts is not None and not 0 < len(prompts) <= num_images:
            wanted = f"a list of 1 to {num_images} (--image_grid.num_images) prompts"
            refuse("image_grid.prompts", len(prompts), wanted)
        self.every_n_steps, self.num_images, self.prompts = every_n_steps, num_images, prompts

    @property
    def own_prompts(self) -> Sequence[str]:
        """Return the chosen prompts."""
        return self.prompts or ()

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Draw the untrained generator; a continued run has drawn its start before."""
        if self.every_n_steps and not trainer.global_step:
            self._draw(trainer, pl_module)

    def on_iterated(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Draw on schedule."""
        if self.every_n_steps and trainer.global_step % self.every_n_steps == 0:
            self._draw(trainer, pl_module)

    def _draw(self, trainer: L.Trainer, module: Any) -> None:
        prompts = spread(self.prompts or trainer.datamodule.heldout_prompts, self.num_images)
        # On all processes, because a sharded network needs them.
        latents = module.generate(prompts, range(self.num_images))
        if not trainer.is_global_zero:
            return
        images = module.teacher.decode(latents)
        picture, step = grid(images), trainer.global_step
        with warning_if_unwritten(f"The grid of iteration {step}"):
            save_png(picture, Path(trainer.default_root_dir) / "grids" / f"step-{step:07d}.png")
            log_images(trainer.loggers, "grid", to_pil(images), prompts, step, whole=picture)
