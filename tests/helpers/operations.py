"""Count the operations of a step on the device, and its device-to-host synchronizations."""

from collections import Counter
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

# Operations that copy a number to the host, or whose output size depends on values.
READS = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "unique")


class Operations(TorchDispatchMode):
    """Count operations by name, and reads of tensors that would be on the device.

    Args:
        host: Data pointers of tensors that are always on the host; reading them is free.
    """

    def __init__(self, host: set[int] = frozenset()) -> None:  # type: ignore[assignment]
        super().__init__()
        self.count: Counter[str] = Counter()
        self.reads = 0
        self.host = set(host)
        self.order: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        self.count[name] += 1
        if name == "copy_" and (kwargs or {}).get("non_blocking", args[2:] == (True,)):
            self.host.add(args[0].data_ptr())
            self.order.append("sent")
        elif name in READS and args[0].data_ptr() in self.host:
            self.order.append("read")
        elif name in READS:
            self.reads += 1
        else:
            self.order.append(name)
        return func(*args, **(kwargs or {}))


def step_counters(optimizers: list[torch.optim.Optimizer]) -> set[int]:
    """Return the data pointers of the optimizers' step counts, which PyTorch keeps on the host."""
    states = [state for optimizer in optimizers for state in optimizer.state.values()]
    return {state["step"].data_ptr() for state in states if torch.is_tensor(state.get("step"))}
