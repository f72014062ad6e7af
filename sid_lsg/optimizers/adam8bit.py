"""bitsandbytes' Adam with 8-bit moments, for weights in any memory format."""

from collections.abc import Callable
from typing import Any

import torch
from bitsandbytes.optim import Adam8bit as Blockwise
from torch import Tensor


class Adam8bit(Blockwise):
    """Adam with 8-bit moments in blocks of 256 elements, each with a scale.

    The moments take 2 bytes per weight instead of 8, or instead of 4 without the first moment.
    Steps approximate those of Adam. Needs `pip install 'sid-lsg[eight-bit]'`.

    Weights keep their memory format. bitsandbytes would make them contiguous, and convolutions
    slower.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update all weights that have gradients; keep their memory formats."""
        changed: list[tuple[Tensor, Tensor, Tensor | None]] = []
        for p in (p for group in self.param_groups for p in group["params"]):
            if not p.is_contiguous():
                data, grad = p.data, p.grad
                changed.append((p, data, grad))
                _set(
                    p,
                    _in_memory_order(data, data),
                    None if grad is None else _in_memory_order(grad, data),
                )
        try:
            return super().step(closure)
        finally:
            for p, data, grad in changed:
                _set(p, data, grad)


def _set(p: Tensor, data: Tensor, grad: Tensor | None) -> None:
    p.grad = None  # its shape must match the weight's: remove it first
    p.data = data
    p.grad = grad


def _in_memory_order(tensor: Tensor, like: Tensor) -> Tensor:
    """View a tensor with its dimensions permuted to the memory order of `like`."""
    strides = like.stride()
    return tensor.permute(sorted(range(like.dim()), key=lambda d: -strides[d]))
