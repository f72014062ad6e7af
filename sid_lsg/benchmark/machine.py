"""The machine that a measurement was made on, and the most that it can do."""

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
    """Return what tells the seconds of work.

    On a GPU those are seconds, read when the device has done all its work. On a CPU with one thread
    they are CPU seconds, which other programs disturb less; with more they are seconds, since
    threads that wait for each other count as working.
    """
    if device.type != "cuda":
        return time.process_time if torch.get_num_threads() == 1 else time.perf_counter

    def now() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return now


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Let this many threads of the CPU work."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def describe(device: torch.device) -> dict[str, Any]:
    """Name the device and the libraries."""
    about: dict[str, Any] = {
        "device": _cpu(),
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


def _cpu() -> str:
    """Name the processor, as the operating system does."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def matmul_ceiling(device: torch.device, dtype: torch.dtype, seconds: float = 0.5) -> float:
    """Measure the most that square matrix products reach, in FLOP/s.

    That is the best of several sizes, each by the median of its repetitions, under the settings for
    TF32 that hold.

    Args:
        device: Where.
        dtype: Of the factors and the product.
        seconds: How long each size is repeated.
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
