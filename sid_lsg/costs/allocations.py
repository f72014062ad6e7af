"""Track the bytes of live tensors by category."""

import weakref
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

GRADIENTS, ACTIVATIONS = "gradients", "activations"


class Allocations(TorchDispatchMode):
    """Count the bytes of live tensors as operations create them and Python frees them.

    This works on every device, also on the CPU, for which PyTorch has no memory statistics.
    Workspace that a kernel allocates internally is not counted.

    Attributes:
        live: Current bytes by category.
        peak: Peak bytes by category.
        peak_of_all: Peak bytes of all categories together.
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
        """Run an operation and record the memory of the new tensors that it returns."""
        out = self.run(func, args, kwargs or {})
        given = {_key(t) for t in tensors((args, kwargs))}
        for tensor in tensors(out):
            if _key(tensor) not in given:
                self.note(tensor, ACTIVATIONS)
        return out

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operation."""
        return func(*args, **kwargs)

    def note(self, tensor: Tensor, category: str) -> None:
        """Assign a tensor's memory to a category."""
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


def tensors(tree: Any) -> Iterator[Tensor]:
    """Iterate over the tensors in arguments or results: lists, tuples and dictionaries."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, (list, tuple, dict)):
        for part in tree.values() if isinstance(tree, dict) else tree:
            yield from tensors(part)


def _key(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
