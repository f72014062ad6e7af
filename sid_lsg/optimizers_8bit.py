"""Old name of `sid_lsg.optimizers.adam8bit`, for stored configs."""

from sid_lsg.optimizers.adam8bit import Adam8bit

__all__ = ["Adam8bit"]
