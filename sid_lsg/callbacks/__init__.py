"""Lightning callbacks: the optional parts of a run, around the training step.

Callbacks use the module's public methods and do not know each other.

May import every wing but commands, app, benchmark and study.
"""

from sid_lsg.callbacks.checkpoint import Checkpoint
from sid_lsg.callbacks.export import Export
from sid_lsg.callbacks.health import Health
from sid_lsg.callbacks.image_grid import ImageGrid
from sid_lsg.callbacks.interruption import Interruption
from sid_lsg.callbacks.metrics import Metrics
from sid_lsg.callbacks.progress import Progress
from sid_lsg.callbacks.throughput import Throughput

__all__ = [
    "Checkpoint",
    "Export",
    "Health",
    "ImageGrid",
    "Interruption",
    "Metrics",
    "Progress",
    "Throughput",
]
