"""Time and FLOPs of an iteration by kind of operator."""

import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch.profiler import ProfilerActivity, profile

Operators = dict[str, dict[str, float]]
"""`seconds`, `calls` and `flops` by kind; the last kind is the time outside operators."""

_REST = "elementwise and other"

# Patterns of operators' names; the first match counts.
_KINDS = {
    # Comes first: Inductor's kernel names contain the operators that it fused.
    "compiled by torch.compile": "^triton_|compiled",
    "convolutions": "conv",
    "attention": "attention",
    "matrix products": r"mm\b|mm_|linear|matmul",
    "group and layer norms": "group_norm|layer_norm",
    "optimizers, EMA, repair": "foreach|fused_adam|nan_to_num",
    "copies": "copy|clone|::cat|contiguous|fill|zero",
    _REST: "",
}
_OUTSIDE = {"cpu": "Python and launches", "cuda": "the device waits"}


@contextmanager
def measured_operators(device: torch.device) -> Iterator[Operators]:
    """Profile an iteration by kind of operator; complete when the context ends.

    Seconds are those of the device: of kernels on a GPU, of operators on a CPU.
    """
    kind = device.type if device.type in _OUTSIDE else "cpu"
    activities = [ProfilerActivity.CPU]
    if kind == "cuda":
        activities.append(ProfilerActivity.CUDA)
        torch.cuda.synchronize(device)
    row: Operators = {}
    with profile(activities=activities) as profiled:
        start = time.perf_counter()
        yield row
        if kind == "cuda":
            torch.cuda.synchronize(device)
        whole = time.perf_counter() - start
    found: Operators = {name: {"seconds": 0.0, "calls": 0} for name in _KINDS}
    kernels = 0.0
    for event in profiled.key_averages():
        if event.device_type.name == "CPU":  # an operator, with the time of the kernels it launches
            spent = event.self_device_time_total if kind == "cuda" else event.self_cpu_time_total
            own = found[kind_of(event.key)]
            own["seconds"] += spent / 1e6
            own["calls"] += event.count if event.key.startswith("aten::") else 0
        elif not event.is_user_annotation:
            kernels += event.self_device_time_total / 1e6
    attributed = sum(own["seconds"] for own in found.values())
    found[_REST]["seconds"] += max(0.0, kernels - attributed)
    row.update({name: own for name, own in found.items() if own["seconds"]})
    inside = sum(own["seconds"] for own in row.values())
    row[_OUTSIDE[kind]] = {"seconds": max(0.0, whole - inside), "calls": 0}


def waiting(measured: Operators, seconds: float) -> Operators:
    """Correct the time that a GPU waits: the profiler slows down the host, but not the kernels.

    Args:
        measured: The result of `measured_operators`.
        seconds: The time of an iteration without the profiler.
    """
    name = _OUTSIDE["cuda"]
    if name not in measured:
        return measured
    kernels = sum(own["seconds"] for kind, own in measured.items() if kind != name)
    return {**measured, name: {**measured[name], "seconds": max(0.0, seconds - kernels)}}


def with_flops(measured: Operators, flops: Mapping[str, float]) -> Operators:
    """Add the operators' FLOPs, given by name, to their kinds."""
    kinds = {kind: {**own, "flops": 0.0} for kind, own in measured.items()}
    for operator, number in flops.items():
        kinds[kind_of(operator)]["flops"] += number
    return kinds


def kind_of(operator: str) -> str:
    """Return the kind of an operator from its name."""
    return next(kind for kind, names in _KINDS.items() if re.search(names, operator.lower()))
