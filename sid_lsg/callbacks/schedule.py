"""Schedule callbacks by the number of images seen."""

from collections.abc import Mapping

import lightning as L


def images_seen(trainer: L.Trainer) -> int:
    """Return the number of images seen so far, over all processes."""
    return trainer.global_step * trainer.datamodule.batch_size


def due(trainer: L.Trainer, every_n_images: int) -> bool:
    """Return True if the last iteration passed a multiple of so many images; False for 0."""
    seen, batch_size = images_seen(trainer), trainer.datamodule.batch_size
    return bool(every_n_images) and seen // every_n_images > (seen - batch_size) // every_n_images


def log_now(trainer: L.Trainer, values: Mapping[str, float]) -> None:
    """Log values at the current iteration, with the images seen, to every logger."""
    row = {**values, "images_seen": float(images_seen(trainer))}
    for logger in trainer.loggers:
        logger.log_metrics(row, step=trainer.global_step)
