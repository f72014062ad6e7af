"""Networks whose weights are spread over all processes (FSDP2): cut apart, and put together.

A sharded network's parameters are DTensors: each process stores a share of every one, and all of
them gather a block's weights whenever it is evaluated. So all processes must evaluate it equally
often, and whatever needs a whole tensor is for all processes together.
"""

import copy
import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor


def local(tensor: Tensor) -> Tensor:
    """Return this process' share of a sharded tensor; any other as it is. No copy."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """Put a sharded tensor together, for all processes; return any other as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(tensor: Tensor, own: Tensor | None) -> Tensor:
    """Shard a whole tensor as `own` is; return it as it is where that is not of its kind."""
    if isinstance(own, DTensor) and own.shape == tensor.shape:
        return distribute_tensor(tensor.to(own.device), own.device_mesh, own.placements)
    return tensor


def first_of_share(tensor: Tensor) -> int:
    """Return the place of this process' first number in the whole tensor, flattened."""
    if not isinstance(tensor, DTensor):
        return 0
    rows = -(-len(tensor) // tensor.device_mesh.size())  # as torch.chunk cuts them
    start = min(rows * tensor.device_mesh.get_local_rank(), len(tensor))
    return start * (tensor.numel() // len(tensor))


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
    for block in _blocks(network):
        fully_shard(block, mesh=mesh, mp_policy=inner, reshard_after_forward=True)
    fully_shard(network, mesh=mesh, mp_policy=root, reshard_after_forward=True)


def is_sharded(network: nn.Module) -> bool:
    """Tell whether a network is one that `shard` has treated."""
    return isinstance(network, FSDPModule)


def reduce_in_backward(network: nn.Module, reduce: bool) -> None:
    """Say whether backward passes reduce a sharded network's gradients, or only add them up."""
    if isinstance(network, FSDPModule):
        network.set_requires_gradient_sync(reduce)


def skeleton(network: nn.Module) -> nn.Module:
    """Copy a network without its numbers: FSDP2 changes a network's class, and cannot undo it."""
    tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    empty = {
        id(t): nn.Parameter(t.to("meta"), False) if isinstance(t, nn.Parameter) else t.clone()
        for t in tensors.values()
    }
    return copy.deepcopy(network, empty)


def _blocks(network: nn.Module) -> Iterator[nn.Module]:
    """List what is gathered at a time: the members of lists, and a UNet's middle."""
    for name, child in network.named_children():
        if isinstance(child, nn.ModuleList):
            yield from child
        elif name == "mid_block":
            yield child
