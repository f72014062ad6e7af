"""TF32: float32 matrix products and convolutions with 10 instead of 23 mantissa bits.

PyTorch enables it by default for convolutions, but not for matrix products. Here it is off for both
unless the user enables it, as in the official code.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_BACKENDS: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)


def allow_tf32(allowed: bool) -> None:
    """Enable or disable TF32 for matrix products and convolutions in this process."""
    for backend in _BACKENDS:
        backend.allow_tf32 = allowed


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Enable or disable TF32 within the context, then restore the previous state."""
    before = [backend.allow_tf32 for backend in _BACKENDS]
    allow_tf32(allowed)
    try:
        yield
    finally:
        for backend, own in zip(_BACKENDS, before, strict=True):
            backend.allow_tf32 = own
