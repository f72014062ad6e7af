"""Measure the memory of an iteration by category."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from sid_lsg.costs.allocations import ACTIVATIONS, GRADIENTS, Allocations, tensors
from sid_lsg.networks.compilation import as_written
from sid_lsg.training.module import SiDLSG


@contextmanager
def measured_memory(module: SiDLSG) -> Iterator[dict[str, int]]:
    """Measure the peak bytes of an iteration by category; complete when the context ends.

    "activations" are all tensors that are no weights, gradients, optimizer states or EMA. "all" is
    the peak of their sum, which may be less than the sum of their peaks. "allocator", on a CUDA
    device, is the peak of PyTorch's allocator.

    Tensors inside a compiled graph cannot be counted. With compiled networks on a CUDA device,
    "activations" is the allocator's peak minus the other categories; on a CPU the networks run
    eagerly.
    """
    cuda = module.device.type == "cuda"
    by_allocator = cuda and module.compute.compile
    allocations = Allocations()
    networks = (module.fake_score, module.generator)
    kept = {
        "weights": [*module.teacher.parameters(), *_parameters(networks)],
        "EMA": _parameters((module.ema, *module.averages)),
        "optimizer": _states(module.trainer.optimizers),
        GRADIENTS: (p.grad for p in _parameters(networks) if p.grad is not None),
    }
    for category, held in kept.items():
        for tensor in held:
            if tensor.device == module.device:
                allocations.note(tensor, category)

    def note_gradient(p: Tensor) -> None:
        assert p.grad is not None
        allocations.note(p.grad, GRADIENTS)

    with ExitStack() as stack:
        for p in _parameters(networks):
            if p.requires_grad:
                handle = p.register_post_accumulate_grad_hook(note_gradient)
                stack.callback(handle.remove)
        found: dict[str, int] = {}
        if cuda:
            torch.cuda.reset_peak_memory_stats(module.device)
        if not by_allocator:
            stack.enter_context(as_written(module.compute.compile))
            stack.enter_context(allocations)
        yield found
    found |= {name: allocations.peak[name] for name in (*kept, ACTIVATIONS)}
    found["all"] = allocations.peak_of_all
    if cuda:
        found["allocator"] = torch.cuda.max_memory_allocated(module.device)
    if by_allocator:
        found["all"] = found["allocator"]
        found[ACTIVATIONS] = found["all"] - sum(found[name] for name in kept)


def _parameters(networks: Iterable[nn.Module]) -> list[nn.Parameter]:
    return [p for network in networks for p in network.parameters()]


def _states(optimizers: Iterable[torch.optim.Optimizer]) -> Iterator[Tensor]:
    for optimizer in optimizers:
        for state in optimizer.state.values():
            yield from tensors(state)
