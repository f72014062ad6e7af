"""Networks whose weights are spread over all processes (FSDP2): cut apart, and put together.

A sharded network's parameters are DTensors: each process stores a share of every one, and all of
them gather a block's weights whenever it is evaluated. So all processes must evaluate it equally
often, and whatever needs a whole tensor is for all processes together.
"""

import copy
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor


def local(tensor: Tensor) -> Tensor:
    """Return this process' share of a sharded tensor; any other as it is. No copy."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """Put a sharded tensor together, for all processes; return any other as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


class Pieces:
    """A tensor whose rows lie in several tensors one after the other, which may lie in files."""

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


def like(value: Any, own: Tensor | None) -> Any:
    """Take this process' rows of a whole tensor, if `own` is sharded; else all of it.

    Nothing travels, and of a tensor in a file nothing but these rows is read. What is no tensor,
    such as an optimizer's count of steps, is returned as it is.
    """
    if not isinstance(value, Tensor | Pieces):
        return value
    if isinstance(own, DTensor) and own.shape == value.shape:
        start, mesh = _first_row(own), own.device_mesh
        rows = value[start : start + len(own.to_local())].to(own.device, copy=True)
        return DTensor.from_local(rows, mesh, own.placements, shape=own.shape, stride=own.stride())
    return value[0 : value.shape[0]] if isinstance(value, Pieces) else value


def laid_out_as(value: Tensor, weight: Tensor) -> Tensor:
    """Return numbers of a weight's shape in the weight's order of memory; a copy if they are not.

    Fused optimizers walk through memory. Weights are channels-last on a single process and plain
    where they are sharded, and a checkpoint keeps the order of the process that wrote it.
    """
    own, like = local(value), local(weight)
    if own.shape != like.shape or own.stride() == like.stride():
        return value
    own = torch.empty_like(like, dtype=own.dtype).copy_(own)
    if isinstance(value, DTensor):
        where, shape, stride = value.placements, value.shape, value.stride()
        return DTensor.from_local(own, value.device_mesh, where, shape=shape, stride=stride)
    return own


def first_of_share(tensor: Tensor) -> int:
    """Return the place of this process' first number in the whole tensor, flattened."""
    if not isinstance(tensor, DTensor):
        return 0
    return _first_row(tensor) * (tensor.numel() // len(tensor))


def _first_row(tensor: DTensor) -> int:
    rows = -(-len(tensor) // tensor.device_mesh.size())  # as torch.chunk cuts them
    return min(rows * tensor.device_mesh.get_local_rank(), len(tensor))


def shard(network: nn.Module, mesh: DeviceMesh, half: bool = False) -> None:
    """Spread a network's weights over the processes of a mesh, block by block, in place.

    The root is freed after its forward pass like the blocks. It would stay whole by default, and
    what then changes `requires_grad` or averages weights would reach temporary parameters.

    Args:
        network: What to shard.
        mesh: The processes.
        half: Whether to gather weights and compute in bfloat16. The shares and the reduction of
            gradients are in float32 either way, and so is what the network returns.
    """
    inner = root = MixedPrecisionPolicy()
    if half:
        inner = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        root = dataclasses.replace(inner, output_dtype=torch.float32)
    for p in network.parameters():
        p.data = p.data.contiguous()  # FSDP2 takes no other order, such as channels last
    for block in blocks(network):
        fully_shard(block, mesh=mesh, mp_policy=inner, reshard_after_forward=True)
    fully_shard(network, mesh=mesh, mp_policy=root, reshard_after_forward=True)
    vars(network)["_evaluations"] = []
    network.register_forward_hook(_note_evaluation)


def _note_evaluation(network: nn.Module, _: Any, output: Any) -> None:
    """Remember where the backward pass of an evaluation begins, if the network is trained."""
    if torch._C._current_graph_task_id() != -1:
        return  # in a backward pass, which computes again what was noted before
    node = (output[0] if isinstance(output, tuple) else output).grad_fn
    if node is not None and any(p.requires_grad for p in network.parameters()):
        vars(network)["_evaluations"].append(node)


def is_sharded(network: nn.Module) -> bool:
    """Tell whether a network is one that `shard` has treated."""
    return isinstance(network, FSDPModule)


def reduce_in_backward(network: nn.Module, reduce: bool) -> None:
    """Say whether the next backward pass reduces a sharded network's gradients, or only adds them.

    FSDP2 would reduce them after every evaluation of the network. Here the first one alone does it,
    which the backward pass comes to last, and until then each process has whole gradients.
    """
    if isinstance(network, FSDPModule):
        evaluations: list[Any] = vars(network)["_evaluations"]
        network.set_requires_gradient_sync(reduce and len(evaluations) < 2)
        if reduce and len(evaluations) > 1:
            evaluations[0].register_prehook(lambda _: network.set_requires_gradient_sync(True))
        evaluations.clear()


def gather_root(network: nn.Module) -> None:
    """Gather the weights that are in no block, if a network is sharded.

    For a backward pass that does not begin at the network's output, where FSDP2 would do it. The
    pass frees them as ever.
    """
    if isinstance(network, FSDPModule):
        network.unshard()


def skeleton(network: nn.Module) -> nn.Module:
    """Copy a network without its numbers: FSDP2 changes a network's class, and cannot undo it."""
    tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    empty = {
        id(t): nn.Parameter(t.to("meta"), False) if isinstance(t, nn.Parameter) else t.clone()
        for t in tensors.values()
    }
    return copy.deepcopy(network, empty)


def blocks(network: nn.Module) -> Iterator[nn.Module]:
    """List what is gathered or compiled at a time: the members of lists, and a UNet's middle."""
    for name, child in network.named_children():
        if isinstance(child, nn.ModuleList):
            yield from child
        elif name == "mid_block":
            yield child
