"""Search the largest micro-batch that fits into memory."""

import gc
from collections.abc import Callable

import torch
from lightning.pytorch.utilities.memory import is_oom_error


def largest(fits: Callable[[int], bool], limit: int = 4096) -> int:
    """Return the largest number that fits, by doubling and bisection; 0 if 1 does not fit.

    Args:
        fits: Returns whether a number fits; if it does, all smaller ones do.
        limit: The largest number to try.
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
    """Return whether a call succeeds within the device's memory, and free the memory it used.

    Errors other than out of memory are raised.
    """
    try:
        attempt()
        done = True
    except RuntimeError as error:  # libraries report it with their own messages
        text = str(error)
        if not (is_oom_error(error) or "out of memory" in text or "ALLOC_FAILED" in text):
            raise
        done = False
    gc.collect()  # after the handler, since the exception references the failed step's tensors
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return done
