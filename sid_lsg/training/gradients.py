"""Reduce, repair, clip and measure gradients between backward pass and optimizer step."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from sid_lsg.distributed.processes import process
from sid_lsg.distributed.sharding import first_of_share, local, whole
from sid_lsg.options.training import ClipAlgorithm

# Numbers per all-reduce: enough for full bandwidth, without a second copy of all gradients.
_BUCKET = 2**24

# Weights that `sample_weights` copies. They give the update ratio to 0.1 %; copying all weights
# before the step would take 3.4 GB for Stable Diffusion 1.5.
_SAMPLED = 2**20


def all_reduce_mean(parameters: Sequence[nn.Parameter]) -> None:
    """Average the gradients over all ranks in flat buckets; a missing gradient counts as zero.

    Every rank runs the same collectives whatever its data. Sharded gradients are already averaged
    by the backward pass.

    The reduction does not overlap the backward pass. It took 2 to 6 % of an iteration of the
    embedded teacher (two CPU processes, 32 images each in one micro-batch). Overlapping could save
    at most that, and less with several micro-batches. Several GPUs have not been measured.

    Raises:
        RuntimeError: If a sharded network has no gradients.
    """
    if all(p.grad is None for p in parameters) and any(isinstance(p, DTensor) for p in parameters):
        raise RuntimeError("the backward pass did not reduce the gradients of a sharded network")
    for p in parameters:
        if p.grad is None:
            p.grad = torch.zeros_like(p)
    if process()[1] == 1 or any(isinstance(p.grad, DTensor) for p in parameters):
        return
    bucket: list[Tensor] = []
    for index, p in enumerate(parameters):
        bucket.append(p.grad)  # type: ignore[arg-type]
        if sum(g.numel() for g in bucket) >= _BUCKET or index == len(parameters) - 1:
            flat = torch.cat([g.reshape(-1) for g in bucket])
            dist.all_reduce(flat)
            flat /= dist.get_world_size()
            for g, part in zip(bucket, torch.split(flat, [g.numel() for g in bucket]), strict=True):
                g.copy_(part.view(g.shape))
            bucket = []


def repair_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Replace NaN by 0 and +-inf by +-1e5 in place, so that one overflow does not ruin a run."""
    for p in parameters:
        if p.grad is not None:
            torch.nan_to_num_(local(p.grad), nan=0.0, posinf=1e5, neginf=-1e5)


def nonfinite_share(parameters: Sequence[nn.Parameter]) -> Tensor:
    """Return the fraction of gradient entries that are NaN or infinite: a scalar on the device."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    total = sum(g.numel() for g in gradients)
    # Count in integers: float32 would lose one entry in a billion.
    finite = torch.stack([local(g).isfinite().sum() for g in gradients]).sum()
    if any(isinstance(g, DTensor) for g in gradients):
        dist.all_reduce(finite)
    return (total - finite) / total


def sample_weights(parameters: Sequence[nn.Parameter]) -> Tensor:
    """Copy every n-th weight of a network, about 2^20 in all, always the same: [N] float32.

    n is odd and layer sizes are even, so the sample covers all channels. Of sharded weights, each
    process copies those in its shard.
    """
    stride = (sum(p.numel() for p in parameters) // _SAMPLED) | 1
    first, parts = 0, []
    for p in parameters:
        # Flattening a channels-last weight copies it; clone the sample so that this copy is freed.
        own = local(p.detach()).flatten()
        parts.append(own[(first - first_of_share(p)) % stride :: stride].float().clone())
        first = (first - p.numel()) % stride
    return torch.cat(parts)


def update_ratio(before: Tensor, after: Tensor, sharded: bool = False) -> Tensor:
    """Return the size of a step relative to the weights: ||after - before|| / ||before||, a scalar.

    Args:
        before: Weights before the step.
        after: The same weights after the step.
        sharded: Whether the weights are this process' shard.
    """
    squares = torch.stack([(after - before).square().sum(), before.square().sum()])
    if sharded:
        dist.all_reduce(squares)
    norms = squares.sqrt()
    return norms[0] / norms[1]


def clip_gradients(
    parameters: Sequence[nn.Parameter], limit: float, algorithm: ClipAlgorithm
) -> None:
    """Scale gradients to a total norm of at most `limit`, or clamp each entry to +-`limit`."""
    if algorithm == "norm":
        nn.utils.clip_grad_norm_(parameters, limit)
    else:
        for p in parameters:
            if p.grad is not None:
                local(p.grad).clamp_(-limit, limit)


def gradient_norm(parameters: Sequence[nn.Parameter]) -> Tensor:
    """Return the total L2 norm of all gradients: a scalar."""
    return whole(nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))
