"""Pictures and tables for whichever loggers can show them."""

import sys
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from PIL import Image

from sid_lsg.messages.words import table


def log_images(
    loggers: Iterable[Logger],
    key: str,
    pictures: Sequence[Image.Image],
    captions: Sequence[str] | None,
    step: int,
    whole: Image.Image | None = None,
) -> None:
    """Show pictures in W&B, one by one with their captions, and in TensorBoard, as one picture.

    Args:
        loggers: The run's loggers; those of other kinds are passed over.
        key: Name of the panel.
        pictures: The pictures.
        captions: One for each of them.
        step: The iteration.
        whole: All of them laid out as one picture, for TensorBoard. By default TensorBoard lays
            them out itself, if they are of one size; otherwise it gets them one by one.
    """
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            options = {} if captions is None else {"caption": list(captions)}
            logger.log_image(key, list(pictures), step=step, **options)
        elif isinstance(logger, TensorBoardLogger):
            shown = [np.asarray(p.convert("RGB")) for p in ([whole] if whole else pictures)]
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
    """Show a table in W&B, pictures included, and in TensorBoard, without them.

    Args:
        loggers: The run's loggers; those of other kinds are passed over.
        key: Name of the panel.
        columns: Names of the columns.
        rows: Rows of cells: text, numbers, PIL images, or what W&B has for media.
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
    """Wrap a picture."""
    import wandb  # see wandb_logger.py

    return wandb.Image(cell) if isinstance(cell, Image.Image) else cell


def _is_media(cell: Any) -> bool:
    """Tell what a text cannot hold: a picture, or any of W&B's media, which wandb has made."""
    wandb = sys.modules.get("wandb")
    return isinstance(cell, Image.Image) or bool(
        wandb and isinstance(cell, wandb.data_types.WBValue)
    )


def _text(cell: Any) -> str:
    return f"{cell:.4g}" if isinstance(cell, float) else str(cell)
