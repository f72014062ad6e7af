"""Log the updates of an iteration."""

from typing import Any

import lightning as L
import torch

from sid_lsg.data.prompts import PromptBatch
from sid_lsg.training.bad_samples import warn
from sid_lsg.training.update import Update


class IterationLog:
    """Log the two updates of an iteration, and count skipped samples between rows of the log."""

    def __init__(self) -> None:
        self.skipped = 0  # bad samples of all ranks since the last row
        self._warned = False

    def count(self, batch: PromptBatch, fake: Update, generator: Update) -> None:
        """Count the skipped samples of both phases; warn about the first. Collective."""
        count = fake.skipped_samples + generator.skipped_samples
        self.skipped += count
        if count and not self._warned:
            self._warned = True
            prompts = [batch.fake[i] for i in fake.skipped]
            warn(batch.iteration + 1, prompts + [batch.generator[i] for i in generator.skipped])

    def write(
        self, module: L.LightningModule, fake: Update, generator: Update, images_seen: int
    ) -> None:
        """Log losses, gradients, steps and progress, as means over the batch of all ranks."""
        optimizers = module.trainer.optimizers
        losses = {"loss_fake": fake.loss, "loss_generator": generator.loss}
        others: dict[str, Any] = {
            **fake.numbers,
            **generator.numbers,
            "grad_norm_fake": fake.gradient_norm,
            "grad_norm_generator": generator.gradient_norm,
            "update_ratio_fake": fake.update_ratio,
            "update_ratio_generator": generator.update_ratio,
            "nonfinite_gradients": torch.stack(
                [fake.nonfinite_gradients, generator.nonfinite_gradients]
            ).amax(),
            "weight": generator.weight,
            "images_seen": float(images_seen),
            "lr_fake": optimizers[0].param_groups[0]["lr"],
            "lr_generator": optimizers[1].param_groups[0]["lr"],
            # Lightning takes the loggers' x axis from this name; its own would be one behind.
            "step": float(module.trainer.global_step),
        }
        # Each rank's loss is a mean over its share of the batch, so the batch's is their mean.
        module.log_dict(losses, prog_bar=True, sync_dist=True)
        module.log_dict(others, sync_dist=True)
        module.log("skipped_samples", float(self.skipped))  # of all ranks already
        self.skipped = 0
