"""The machine of a measurement: its clock, description and peak FLOP/s."""

import platform
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def clock(device: torch.device) -> Callable[[], float]:
    """Return a function that returns the current time in seconds, for a device.

    On a GPU it synchronizes first. On a CPU with one thread it returns CPU time, which other
    programs disturb less. With more threads it returns wall-clock time, since threads that wait for
    each other use CPU time.
    """
    if device.type != "cuda":
        return time.process_time if torch.get_num_threads() == 1 else time.perf_counter

    def now() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return now


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Set the number of CPU threads within the context."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def describe(device: torch.device) -> dict[str, Any]:
    """Return the names of the device and the versions of the libraries."""
    about: dict[str, Any] = {
        "device": processor(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        about |= {
            "device": properties.name,
            "memory_gib": round(properties.total_memory / 2**30, 1),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    return about


def processor() -> str:
    """Return the operating system's name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def matmul_ceiling(device: torch.device, dtype: torch.dtype, seconds: float = 0.5) -> float:
    """Measure the peak FLOP/s of square matrix products, with the current TF32 setting.

    It is the best of several sizes, each with the median time of its repetitions.

    Args:
        device: The device.
        dtype: The dtype of the factors and the product.
        seconds: How long to repeat each size.
    """
    now, best = clock(device), 0.0
    for n in (4096, 8192) if device.type == "cuda" else (512, 1024):
        a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))

        def product(a: Tensor = a, b: Tensor = b) -> float:
            start = now()
            torch.mm(a, b)
            return now() - start

        warmup = [product() for _ in range(3)]
        repetitions = max(5, min(100, int(seconds / max(warmup[-1], 1e-6))))
        best = max(best, 2 * n**3 / statistics.median(product() for _ in range(repetitions)))
    return best
