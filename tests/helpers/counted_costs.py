"""Count what PyTorch allocates; the guidance scales of the counted runs."""

import gc
import itertools
from contextlib import contextmanager
from typing import Any

from torch.profiler import ProfilerActivity, profile

from sid_lsg.method.guidance import Kappas

GUIDED = Kappas(1.5, 1.5, 1.5, 1.5)


@contextmanager
def allocations() -> Any:
    """Record the peak and the remaining bytes of PyTorch's CPU allocator."""
    gc.collect()  # else what earlier tests left may be freed meanwhile, which lowers the peak
    found: dict[str, int] = {}
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        yield found
    events = [e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]
    sizes = [e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())]
    sums = list(itertools.accumulate(sizes))
    found |= {"peak": max(sums), "left": sums[-1]}
