"""Operations that are repeated on the meta device allocate the same results."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sid_lsg.costs.repeated import Repeated

X = torch.empty(2, 4, 6, 6, device="meta").to(memory_format=torch.channels_last)
WEIGHT = torch.empty(8, 4, 3, 3, device="meta")
WHOLE = torch.empty(3, dtype=torch.int64, device="meta")


class Counted(TorchDispatchMode):
    """Count the operations that are more than an allocation."""

    count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self.count += func is not torch.ops.aten.empty_strided.default
        return func(*args, **(kwargs or {}))


class Remembered(TorchDispatchMode):
    """Run operations through `Repeated`."""

    def __init__(self) -> None:
        super().__init__()
        self.repeated = Repeated()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return self.repeated.run(func, args, kwargs or {})


def found(out: Any) -> list[Any]:
    return [
        (x.shape, x.stride(), x.dtype, x.device.type) if isinstance(x, Tensor) else x
        for x in tree_leaves(out)
    ]


@pytest.mark.parametrize(
    "call",
    [
        lambda: torch.conv2d(X, WEIGHT, padding=1),
        lambda: torch.nn.functional.silu(X),
        lambda: torch.native_group_norm(X.contiguous(), None, None, 2, 4, 36, 2, 1e-5),
        lambda: (X.mean(dim=(2, 3)), X.mean(dim=(2, 3), keepdim=True)),
        lambda: (WHOLE * 1, WHOLE * 1.0, WHOLE + True),  # dtypes follow the numbers' types
        lambda: torch.split_copy(X, 2, dim=1),
        lambda: X.to(torch.bfloat16),
    ],
)  # fmt: skip
def test_a_repeated_operation_has_the_same_results(call: Callable[[], Any]) -> None:
    expected = found(call())
    with Counted() as counted, Remembered():
        assert found(call()) == expected
        first = counted.count
        assert found(call()) == expected
        assert 0 < first == counted.count


def test_views_and_writes_are_run() -> None:
    with Counted() as counted, Remembered():
        for _ in range(2):
            assert WHOLE.view(3, 1).untyped_storage()._cdata == WHOLE.untyped_storage()._cdata
            WHOLE.add_(1)
        assert counted.count == 4


def test_tensors_with_data_keep_it() -> None:
    with Remembered():
        assert [(torch.ones(2) * 3).tolist() for _ in range(2)] == [[3, 3], [3, 3]]
