"""Log images and tables to the loggers that support them."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_warn
from PIL import Image

from sid_lsg.messages.words import table


@contextmanager
def warning_if_unwritten(what: str, then: str = "") -> Iterator[None]:
    """Turn an error in writing into a warning: a full disk does not end a run.

    Args:
        what: What is written, for the warning.
        then: A sentence for the warning's end.
    """
    try:
        yield
    except OSError as error:
        said = f"{what} could not be written ({error.strerror or error}). {then}"
        rank_zero_warn(said.rstrip())


def log_images(
    loggers: Iterable[Logger],
    key: str,
    images: Sequence[Image.Image],
    captions: Sequence[str] | None,
    step: int,
    whole: Image.Image | None = None,
) -> None:
    """Log images to W&B, one by one with captions, and to TensorBoard as one image.

    Args:
        loggers: The run's loggers; other kinds are skipped.
        key: Name of the panel.
        images: The images.
        captions: One for each image.
        step: The iteration.
        whole: All images drawn as one, for TensorBoard. By default TensorBoard arranges images of
            equal size itself and gets others one by one.
    """
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            options = {} if captions is None else {"caption": list(captions)}
            logger.log_image(key, list(images), step=step, **options)
        elif isinstance(logger, TensorBoardLogger):
            shown = [np.asarray(i.convert("RGB")) for i in ([whole] if whole else images)]
            if len(shown) > 1 and len({pixels.shape for pixels in shown}) == 1:
                logger.experiment.add_images(key, np.stack(shown), step, dataformats="NHWC")
                continue
            for index, pixels in enumerate(shown):
                name = key if len(shown) == 1 else f"{key}/{index}"
                logger.experiment.add_image(name, pixels, step, dataformats="HWC")


def log_table(
    loggers: Iterable[Logger],
    key: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[Any]],
    step: int,
) -> None:
    """Log a table to W&B with its images, and to TensorBoard without them.

    Args:
        loggers: The run's loggers; other kinds are skipped.
        key: Name of the panel.
        columns: Names of the columns.
        rows: Rows of cells: text, numbers, PIL images, or W&B media.
        step: The iteration.
    """
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            cells = [[_for_wandb(cell) for cell in row] for row in rows]
            logger.log_table(key, columns=list(columns), data=cells, step=step)
        elif isinstance(logger, TensorBoardLogger):
            kept = [i for i in range(len(columns)) if not any(_is_media(row[i]) for row in rows)]
            text = [[_text(row[i]) for i in kept] for row in rows]
            logger.experiment.add_text(key, table([columns[i] for i in kept], text), step)


def _for_wandb(cell: Any) -> Any:
    """Wrap an image for W&B; return other cells unchanged."""
    import wandb  # slow, see wandb_logger.py

    return wandb.Image(cell) if isinstance(cell, Image.Image) else cell


def _is_media(cell: Any) -> bool:
    """Return True for an image or W&B media, which text cannot show."""
    wandb = sys.modules.get("wandb")
    return isinstance(cell, Image.Image) or bool(
        wandb and isinstance(cell, wandb.data_types.WBValue)
    )


def _text(cell: Any) -> str:
    return f"{cell:.4g}" if isinstance(cell, float) else str(cell)
