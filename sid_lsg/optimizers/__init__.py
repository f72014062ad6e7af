"""Optimizers for training without a first moment, or with 8-bit moments.

May import distributed, messages.
"""

from sid_lsg.optimizers.adam import AdamWithoutMomentum

__all__ = ["AdamWithoutMomentum"]
