"""Optimizers."""

from sid_lsg.optimizers.adam import AdamWithoutMomentum

__all__ = ["AdamWithoutMomentum"]
