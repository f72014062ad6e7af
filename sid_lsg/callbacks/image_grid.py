"""The same prompts and seeds, again and again, while the generator learns."""

from pathlib import Path
from typing import Any

import lightning as L

from sid_lsg.callbacks.prompts import spread
from sid_lsg.images.pixels import grid, save_png, to_pil
from sid_lsg.loggers import log_images
from sid_lsg.messages.checks import refuse


class ImageGrid(L.Callback):
    """Draw a grid of the averaged generator's images of held-out prompts, or of given ones.

    PNG files in the run directory's `grids/`; W&B shows the images with their prompts, TensorBoard
    the grid. The first one is the untrained generator's.
    """

    def __init__(
        self, every_n_steps: int = 500, num_images: int = 16, prompts: list[str] | None = None
    ) -> None:
        """Choose how often, how many and of what.

        Args:
            every_n_steps: A grid after every so many iterations; 0 for none.
            num_images: Images in a grid, with seeds 0, 1, ...
            prompts: Prompts of your own, for example ["a red dress", "a black boot"], each in turn
                until there are num_images; by default spread over the held-out ones.
        """
        if every_n_steps < 0:
            refuse("image_grid.every_n_steps", every_n_steps, "at least 0")
        if num_images < 1:
            refuse("image_grid.num_images", num_images, "at least 1")
        if prompts is not None and not 0 < len(prompts) <= num_images:
            wanted = f"a list of 1 to {num_images} (--image_grid.num_images) prompts"
            refuse("image_grid.prompts", len(prompts), wanted)
        self.every_n_steps, self.num_images, self.prompts = every_n_steps, num_images, prompts

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Show where the training starts; what it continues from has been shown, if it was due."""
        if self.every_n_steps and not trainer.global_step:
            self._draw(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Show the progress on schedule."""
        if self.every_n_steps and trainer.global_step % self.every_n_steps == 0:
            self._draw(trainer, pl_module)

    def _draw(self, trainer: L.Trainer, module: Any) -> None:
        prompts = spread(self.prompts or trainer.datamodule.heldout_prompts, self.num_images)
        # On all processes: a sharded network needs every one of them.
        latents = module.generate(prompts, range(self.num_images))
        if not trainer.is_global_zero:
            return
        images = module.teacher.decode(latents)
        picture, step = grid(images), trainer.global_step
        save_png(picture, Path(trainer.default_root_dir) / "grids" / f"step-{step:07d}.png")
        log_images(trainer.loggers, "grid", to_pil(images), prompts, step, whole=picture)
