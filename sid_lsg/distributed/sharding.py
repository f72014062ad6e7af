"""Shard networks over processes with FSDP2, and read and assemble sharded tensors.

The parameters of a sharded network are DTensors: each process stores a share of each parameter,
and all processes gather the weights of a block when it runs. So all processes must run the network
equally often, and must take part whenever a whole tensor is assembled.
"""

import copy
import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor


def local(tensor: Tensor) -> Tensor:
    """Return this process's share of a sharded tensor, without a copy; return others unchanged."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """Gather a sharded tensor on all processes; return other tensors unchanged."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


class Pieces:
    """A tensor stored as consecutive row blocks, which may be memory-mapped from files."""

    def __init__(self, parts: Sequence[Tensor]) -> None:
        self.parts, self.dtype = list(parts), parts[0].dtype
        self.shape = torch.Size((sum(map(len, parts)), *parts[0].shape[1:]))

    def __getitem__(self, rows: slice) -> Tensor:
        """Return a copy of the rows from `start` to `stop`."""
        found, first = [], 0
        for part in self.parts:
            found.append(part[max(rows.start - first, 0) : max(rows.stop - first, 0)])
            first += len(part)
        return torch.cat(found)


def shard_like(value: Any, own: Tensor | None) -> Any:
    """Shard a whole tensor like `own`; return the whole tensor if `own` is not sharded.

    Processes do not communicate, and only this process's rows are read from a file. Other values,
    such as an optimizer's step count, are returned unchanged.
    """
    if not isinstance(value, Tensor | Pieces):
        return value
    if isinstance(own, DTensor) and own.shape == value.shape:
        start, mesh = _first_row(own), own.device_mesh
        rows = value[start : start + len(own.to_local())].to(own.device, copy=True)
        return DTensor.from_local(rows, mesh, own.placements, shape=own.shape, stride=own.stride())
    return value[0 : value.shape[0]] if isinstance(value, Pieces) else value


def match_memory_format(value: Tensor, weight: Tensor) -> Tensor:
    """Return a tensor in the memory format of a weight; copy it only if the formats differ.

    Fused optimizers need equal memory formats. Weights are channels-last in a single process and
    contiguous when sharded, and a checkpoint keeps the format of the run that wrote it.
    """
    own, target = local(value), local(weight)
    if own.shape != target.shape or own.stride() == target.stride():
        return value
    own = torch.empty_like(target, dtype=own.dtype).copy_(own)
    if isinstance(value, DTensor):
        where, shape, stride = value.placements, value.shape, value.stride()
        return DTensor.from_local(own, value.device_mesh, where, shape=shape, stride=stride)
    return own


def first_of_share(tensor: Tensor) -> int:
    """Return the index of this process's first element in the flattened whole tensor."""
    if not isinstance(tensor, DTensor):
        return 0
    return _first_row(tensor) * (tensor.numel() // len(tensor))


def _first_row(tensor: DTensor) -> int:
    rows = -(-len(tensor) // tensor.device_mesh.size())  # rows per process, as in torch.chunk
    return min(rows * tensor.device_mesh.get_local_rank(), len(tensor))


def shard(network: nn.Module, mesh: DeviceMesh, half: bool = False) -> None:
    """Shard a network over the processes of a mesh, block by block, in place.

    The root is freed after its forward pass, like the blocks. By default FSDP2 would keep it
    gathered, and later changes of `requires_grad` or EMA updates would reach temporary parameters.

    Args:
        network: The network to shard.
        mesh: The processes.
        half: Gather weights in bfloat16, for computing under autocast. Shares, gradient reduction
            and the network's output are float32 in both cases.
    """
    inner = root = MixedPrecisionPolicy()
    if half:
        # Inputs keep their dtype: bfloat16 would round times, position ids and rotary embeddings.
        inner = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False
        )
        root = dataclasses.replace(inner, output_dtype=torch.float32)
    for p in network.parameters():
        p.data = p.data.contiguous()  # FSDP2 does not support channels-last
    for block in blocks(network):
        fully_shard(block, mesh=mesh, mp_policy=inner, reshard_after_forward=True)
        block.register_forward_pre_hook(_gather_in_recomputation)
        block.register_forward_hook(_free_in_recomputation)
    fully_shard(network, mesh=mesh, mp_policy=root, reshard_after_forward=True)
    vars(network)["_forwards"] = []
    network.register_forward_hook(_record_forward)


_recomputations = 0


@contextmanager
def recomputation() -> Iterator[None]:
    """Let the blocks of sharded networks be freed in a whole network's recomputation.

    In a backward pass, FSDP2 leaves blocks gathered after their forward pass, for activation
    checkpointing of single blocks. A recomputed network would be gathered whole.
    """
    global _recomputations
    _recomputations += 1
    try:
        yield
    finally:
        _recomputations -= 1


def _gather_in_recomputation(block: Any, *_: Any) -> None:
    if _recomputations:
        block.unshard()


def _free_in_recomputation(block: Any, *_: Any) -> None:
    if _recomputations:
        block.reshard()


def _record_forward(network: nn.Module, _: Any, output: Any) -> None:
    """Record the autograd node of a forward pass's output, if the network is trained."""
    if torch._C._current_graph_task_id() != -1:
        return  # activation checkpointing repeats a recorded forward pass in the backward pass
    while isinstance(output, tuple | list):  # Z-Image's network returns a list of images
        output = output[0]
    node = output.grad_fn
    if node is not None and any(p.requires_grad for p in network.parameters()):
        vars(network)["_forwards"].append(node)


def is_sharded(network: nn.Module) -> bool:
    """Return True if `shard` has sharded the network."""
    return isinstance(network, FSDPModule)


def reduce_in_backward(network: nn.Module, reduce: bool) -> None:
    """Make the next backward pass reduce a sharded network's gradients, or only accumulate them.

    FSDP2 would reduce gradients for every forward pass of the network. Here they are reduced once,
    for the first forward pass, which the backward pass reaches last. Until then each process
    holds whole gradients.
    """
    if isinstance(network, FSDPModule):
        forwards: list[Any] = vars(network)["_forwards"]
        network.set_requires_gradient_sync(reduce and len(forwards) < 2)
        if reduce and len(forwards) > 1:
            forwards[0].register_prehook(lambda _: network.set_requires_gradient_sync(True))
        forwards.clear()


def gather_root(network: nn.Module) -> None:
    """Gather a sharded network's weights that belong to no block.

    A backward pass needs this if it does not start at the network's output, where FSDP2 gathers
    them. The backward pass frees them as usual.
    """
    if isinstance(network, FSDPModule):
        network.unshard()


def skeleton(network: nn.Module) -> nn.Module:
    """Copy a network without its state, since FSDP2 changes its class for good.

    What the state dict holds is on the meta device; other buffers are copied.
    """
    empty: dict[int, Tensor] = {}
    for tensor in network.state_dict(keep_vars=True).values():
        nothing = tensor.to("meta")
        empty[id(tensor)] = (
            nn.Parameter(nothing, False) if isinstance(tensor, nn.Parameter) else nothing
        )
    return copy.deepcopy(network, empty)


def blocks(network: nn.Module) -> Iterator[nn.Module]:
    """Yield the blocks to shard or compile: members of module lists, and `mid_block`."""
    for name, child in network.named_children():
        if isinstance(child, nn.ModuleList):
            yield from child
        elif name == "mid_block":
            yield child
