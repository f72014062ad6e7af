"""TF32: float32 products and convolutions whose factors keep 10 bits of 23, on GPUs that have it.

PyTorch's own default has it for convolutions and not for other products. Here float32 is float32
unless TF32 is asked for, as in the official code.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_BACKENDS: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)


def allow_tf32(allowed: bool) -> None:
    """Let products and convolutions in float32 use TF32 or not, in all of this process."""
    for backend in _BACKENDS:
        backend.allow_tf32 = allowed


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Do so for a while; leave things as they were, whatever is allowed meanwhile."""
    before = [backend.allow_tf32 for backend in _BACKENDS]
    allow_tf32(allowed)
    try:
        yield
    finally:
        for backend, own in zip(_BACKENDS, before, strict=True):
            backend.allow_tf32 = own
