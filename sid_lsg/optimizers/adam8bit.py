"""Adam whose moments take a byte each: bitsandbytes' own, for weights in any order of memory."""

from collections.abc import Callable
from typing import Any

import torch
from bitsandbytes.optim import Adam8bit as Blockwise
from torch import Tensor


class Adam8bit(Blockwise):
    """Adam with both moments in eight bits, in blocks of 256 with a scale each.

    Takes 2 bytes per weight in place of 8, and of 4 without the first moment; its steps are not
    those of Adam but near them. Needs `pip install 'sid-lsg[eight-bit]'`.

    bitsandbytes would put weights into PyTorch's plain order, in which convolutions are slower.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update all weights that have gradients, each in its own order of memory."""
        changed: list[tuple[Tensor, Tensor, Tensor | None]] = []
        for p in (p for group in self.param_groups for p in group["params"]):
            if not p.is_contiguous():
                data, grad = p.data, p.grad
                changed.append((p, data, grad))
                _set(p, _in_order(data, data), None if grad is None else _in_order(grad, data))
        try:
            return super().step(closure)
        finally:
            for p, data, grad in changed:
                _set(p, data, grad)


def _set(p: Tensor, data: Tensor, grad: Tensor | None) -> None:
    p.grad = None  # of the shape that the weight had
    p.data = data
    p.grad = grad


def _in_order(tensor: Tensor, like: Tensor) -> Tensor:
    """View a tensor with the dimensions of `like` in the order in which they lie in memory."""
    strides = like.stride()
    return tensor.permute(sorted(range(like.dim()), key=lambda d: -strides[d]))
