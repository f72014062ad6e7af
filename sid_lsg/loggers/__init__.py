"""Loggers for curves, images and the configuration: a CSV file, Weights & Biases, TensorBoard.

May import files, messages.
"""

from sid_lsg.loggers.csv_logger import CSVLogger
from sid_lsg.loggers.media import log_images, log_table, warning_if_unwritten
from sid_lsg.loggers.tolerant import Tolerance
from sid_lsg.loggers.wandb_logger import WandbLogger

__all__ = [
    "CSVLogger",
    "Tolerance",
    "WandbLogger",
    "log_images",
    "log_table",
    "warning_if_unwritten",
]
