"""Precisions of the device: bfloat16, and TF32.

TF32: float32 matrix products and convolutions with 10 instead of 23 mantissa bits.

PyTorch enables it by default for convolutions, but not for matrix products. Here it is off for both
unless the user enables it, as in the official code.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from sid_lsg.messages.errors import UsageError

_BACKENDS: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)


def check_bf16(device: torch.device, options: Iterable[str]) -> None:
    """Reject options that compute in bfloat16 on a CUDA device that only emulates it.

    Args:
        device: The device.
        options: The options with their values, such as `--trainer.precision bf16-mixed`.

    Raises:
        UsageError: For the first option on such a device.
    """
    if device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False):
        return
    for option in options:
        raise UsageError(
            f"{option}: {torch.cuda.get_device_name(device)} has no bfloat16. Use 32, or 16-mixed "
            "for --trainer.precision."
        )


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
