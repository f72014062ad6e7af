"""What an iteration holds in memory, by category."""

import weakref
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sid_lsg.module import SiDLSG

_GRADIENTS, _ACTIVATIONS = "gradients", "activations"


class Allocations(TorchDispatchMode):
    """Counts the bytes of the tensors that live, as operations make them and Python frees them.

    It is the same on every device: PyTorch keeps no account of the CPU. What a kernel takes for
    itself while it runs is not seen.

    Attributes:
        live: Bytes by category now.
        peak: The most at any time, by category.
        peak_of_all: The most at any time, all together.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[str, int] = defaultdict(int)
        self.peak: dict[str, int] = defaultdict(int)
        self.peak_of_all = 0
        self._category: dict[int, str] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run an operation, and note the memory of what it returns that is new."""
        out = func(*args, **(kwargs or {}))
        given = {_key(t) for t in _tensors((args, kwargs))}
        for tensor in _tensors(out):
            if _key(tensor) not in given:
                self.note(tensor, _ACTIVATIONS)
        return out

    def note(self, tensor: Tensor, category: str) -> None:
        """Put a tensor's memory into a category."""
        storage, key = tensor.untyped_storage(), _key(tensor)
        known = self._category.get(key)
        if known == category:
            return
        size = storage.nbytes()
        if known is None:
            weakref.finalize(storage, self._free, key, size)
        else:
            self.live[known] -= size
        self._category[key] = category
        self.live[category] += size
        self.peak[category] = max(self.peak[category], self.live[category])
        self.peak_of_all = max(self.peak_of_all, sum(self.live.values()))

    def _free(self, key: int, size: int) -> None:
        self.live[self._category.pop(key)] -= size


def _tensors(tree: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))


def _key(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


@contextmanager
def measured_memory(module: SiDLSG) -> Iterator[dict[str, int]]:
    """Measure an iteration's peak memory: bytes by category, complete when the context ends.

    "activations" are all that is neither a weight, a gradient of one, an optimizer's state nor the
    average. "all" is the most at any time, which may be less than their sum. On a CUDA device
    "allocator" is the most that its allocator gave out in this iteration.
    """
    allocations = Allocations()
    networks = (module.fake_score, module.generator)
    kept = {
        "weights": [*module.teacher.parameters(), *_parameters(networks)],
        "EMA": module.ema.parameters(),
        "optimizer": _states(module.trainer.optimizers),
        _GRADIENTS: (p.grad for p in _parameters(networks) if p.grad is not None),
    }
    for category, tensors in kept.items():
        for tensor in tensors:
            if tensor.device == module.device:
                allocations.note(tensor, category)

    def note_gradient(p: Tensor) -> None:
        assert p.grad is not None
        allocations.note(p.grad, _GRADIENTS)

    with ExitStack() as stack:
        for p in _parameters(networks):
            if p.requires_grad:
                handle = p.register_post_accumulate_grad_hook(note_gradient)
                stack.callback(handle.remove)
        found: dict[str, int] = {}
        if module.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(module.device)
        with allocations:
            yield found
    categories = ("weights", _GRADIENTS, "optimizer", "EMA", _ACTIVATIONS)
    found |= {name: allocations.peak[name] for name in categories}
    found["all"] = allocations.peak_of_all
    if module.device.type == "cuda":
        found["allocator"] = torch.cuda.max_memory_allocated(module.device)


def _parameters(networks: Iterable[nn.Module]) -> list[nn.Parameter]:
    return [p for network in networks for p in network.parameters()]


def _states(optimizers: Iterable[torch.optim.Optimizer]) -> Iterator[Tensor]:
    for optimizer in optimizers:
        for state in optimizer.state.values():
            yield from _tensors(state)
