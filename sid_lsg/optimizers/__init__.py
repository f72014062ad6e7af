"""Optimizers for training without a first moment, or with 8-bit moments; learning-rate schedules.

May import distributed, messages.
"""

from sid_lsg.optimizers.adam import AdamWithoutMomentum
from sid_lsg.optimizers.schedules import WarmUp

__all__ = ["AdamWithoutMomentum", "WarmUp"]
