"""The largest micro-batch that fits."""

import gc
from collections.abc import Callable

import torch
from lightning.pytorch.utilities.memory import is_oom_error


def largest(fits: Callable[[int], bool], limit: int = 4096) -> int:
    """Find the largest number that fits: double, then halve the interval. 0 if 1 does not fit.

    Args:
        fits: Whether a number does; if it does, all smaller ones do.
        limit: Where to stop.
    """
    good, bad = 0, 1
    while bad <= limit and fits(bad):
        good, bad = bad, 2 * bad
    while bad - good > 1:
        middle = (good + bad) // 2
        if middle <= limit and fits(middle):
            good = middle
        else:
            bad = middle
    return good


def without_memory_error(attempt: Callable[[], object]) -> bool:
    """Tell whether something can be done in the device's memory; leave nothing of it there."""
    try:
        attempt()
        done = True
    except RuntimeError as error:  # libraries have their own ways to say it
        text = str(error)
        if not (is_oom_error(error) or "out of memory" in text or "ALLOC_FAILED" in text):
            raise
        done = False
    gc.collect()  # outside of the handler, whose exception holds the failed step's tensors
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return done
