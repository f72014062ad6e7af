"""The earlier name of `sid_lsg.optimizers.adam8bit`, which stored configs have."""

from sid_lsg.optimizers.adam8bit import Adam8bit

__all__ = ["Adam8bit"]
