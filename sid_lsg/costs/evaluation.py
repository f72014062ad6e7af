"""FLOPs and bytes of a network's forward and backward pass, counted on the meta device.

Tensors on PyTorch's `meta` device have shapes but no data: a pass takes a second, needs no memory,
and allocates tensor by tensor what a CUDA device would. Memory that libraries use inside an
operation (workspaces, copies in another memory format) is not counted.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import flop_registry

from sid_lsg.costs.allocations import Allocations
from sid_lsg.costs.repeated import Repeated
from sid_lsg.teachers.base import Teacher

Gradient = Literal["weights", "inputs", "both", "none"]
"""Names what the backward pass computes gradients for; with "none" there is no backward pass."""


# ---------------------------------------------------------------------- measuring


class Meter(Allocations):
    """Count FLOPs in addition to the bytes of live tensors.

    Attributes:
        flops: FLOPs of matrix products and convolutions, forward and backward; a multiply-add
            counts as two.
    """

    _repeated = Repeated()  # shared, since passes repeat each other's operations

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0.0

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operation, or allocate the results of one that was run before."""
        return self._repeated.run(func, args, kwargs)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run an operation and count it."""
        out = super().__torch_dispatch__(func, types, args, kwargs)
        packet = func._overloadpacket
        if packet is torch.ops.aten.convolution_backward and args[9] > 1:
            self.flops += _grouped_backward(*args)
        elif packet in flop_registry:
            self.flops += float(flop_registry[packet](*args, **(kwargs or {}), out_val=out))
        return out


def _grouped_backward(grad: Tensor, x: Tensor, weight: Tensor, *rest: Any) -> float:
    """Count a grouped convolution's backward pass; PyTorch's formula ignores the groups."""
    transposed, wanted = rest[4], rest[7]
    forward = 2.0 * (x if transposed else grad).numel() * weight[0].numel()
    return forward * (wanted[0] + wanted[1])


class AsOnCuda(TorchFunctionMode):
    """Make operations on the meta device behave as on a CUDA device.

    Attention is fused: its scores are not stored but recomputed in the backward pass. In mixed
    precision, matrix products and convolutions run in 16 bits and normalizations in float32, and
    weights are cast at each use, as in Lightning.
    """

    def __init__(self, half: torch.dtype | None = None) -> None:
        super().__init__()
        self.half = half

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call a function with its arguments cast as autocast would."""
        kwargs = kwargs or {}
        dtype = self.half if func in _IN_HALF else torch.float32
        if self.half is not None and (func in _IN_HALF or func in _IN_FLOAT):
            args = [_cast(value, dtype) for value in args]
            kwargs = {name: _cast(value, dtype) for name, value in kwargs.items()}
        if func is F.scaled_dot_product_attention:
            named = (kwargs[name] for name in ("query", "key", "value") if name in kwargs)
            query, key, value = (*args, *named)[:3]
            if (groups := query.shape[1] // key.shape[1]) > 1:  # grouped queries
                key, value = (x.repeat_interleave(groups, 1) for x in (key, value))
            fused = torch.ops.aten._scaled_dot_product_efficient_attention
            return fused(query, key, value, None, compute_log_sumexp=query.requires_grad)[0]
        return func(*args, **kwargs)


_IN_HALF = {F.conv2d, F.linear, F.scaled_dot_product_attention, torch.matmul, torch.bmm}
_IN_HALF |= {torch.conv2d, torch.baddbmm}
_IN_FLOAT = {F.group_norm, F.layer_norm, F.softmax, torch.softmax}


def _cast(value: Any, dtype: torch.dtype | None) -> Any:
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


# ---------------------------------------------------------------------- one pass of a network


@dataclass(frozen=True)
class Evaluation:
    """Costs of a network's forward and backward pass, for any number of samples.

    Bytes grow linearly with the number of samples, so they are counted for one and for two.

    Attributes:
        forward: FLOPs per sample.
        backward: FLOPs per sample, including recomputation by activation checkpointing.
        kept_bytes: Bytes of the graph between forward and backward, for one and for two samples.
        peak_bytes: Peak bytes including the graph, for one and for two samples.
    """

    forward: float
    backward: float
    kept_bytes: tuple[int, int]
    peak_bytes: tuple[int, int]

    def kept(self, samples: int) -> int:
        """Return the bytes of the graph."""
        return _extended(self.kept_bytes, samples)

    def peak(self, samples: int) -> int:
        """Return the peak bytes."""
        return _extended(self.peak_bytes, samples)


def _extended(first: tuple[int, int], samples: int) -> int:
    return first[0] + (first[1] - first[0]) * (samples - 1)


def evaluation(
    teacher: Teacher, network: nn.Module, gradient: Gradient, half: torch.dtype | None = None
) -> Evaluation:
    """Count the FLOPs and bytes of a network's forward and backward pass.

    The weights' gradients exist beforehand, as in every micro-batch but the first, and so are not
    counted.

    Args:
        teacher: A teacher on the meta device.
        network: The teacher's network or one of the same architecture, on the meta device.
        gradient: What the backward pass computes gradients for.
        half: The 16-bit dtype of mixed precision; None for float32.
    """
    parameters = [*network.parameters()]
    before = [p.requires_grad for p in parameters]
    for p in parameters:
        p.requires_grad_(gradient in ("weights", "both"))
        p.grad = torch.empty_like(p) if p.requires_grad else None
    one, two = (_passes(teacher, network, gradient, half, samples) for samples in (1, 2))
    for p, required in zip(parameters, before, strict=True):
        p.requires_grad_(required)
        p.grad = None
    return Evaluation(one[0], one[1], (one[2], two[2]), (one[3], two[3]))


def _passes(
    teacher: Teacher,
    network: nn.Module,
    gradient: Gradient,
    half: torch.dtype | None,
    samples: int,
) -> tuple[float, float, int, int]:
    """Return the FLOPs of forward and backward, the bytes kept between them, and peak bytes."""
    null = teacher.null_condition()
    condition = {name: v.new_empty(samples, *v.shape[1:]) for name, v in null.items()}
    x_t = torch.empty(samples, *teacher.latent_shape, device="meta")
    x_t.requires_grad_(gradient in ("inputs", "both"))
    t = torch.empty(samples, dtype=teacher.schedule.time_dtype, device="meta")
    graph = gradient != "none"
    with torch.set_grad_enabled(graph), AsOnCuda(half), Meter() as meter:
        out = teacher.predict(network, x_t, t, condition)
        forward, kept = meter.flops, sum(meter.live.values())
        if not graph:
            return forward, 0.0, kept, meter.peak_of_all
        # Start from an edge: tensor functions such as `out.backward` switch `AsOnCuda` off, and
        # activation checkpointing recomputes the forward pass in here.
        edge = torch.autograd.graph.get_gradient_edge(out)
        torch.autograd.backward(edge, torch.empty_like(out))
    return forward, meter.flops - forward, kept, meter.peak_of_all


def call_cost(call: Callable[[], Any]) -> tuple[float, int]:
    """Return the FLOPs and peak bytes of a call without gradients, on the meta device."""
    with torch.no_grad(), AsOnCuda(), Meter() as meter:
        call()
    return meter.flops, meter.peak_of_all
