"""Record PyTorch's allocations, and define the guidance scales of the recorded runs."""

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
    gc.collect()  # garbage freed during the record would lower the peak
    found: dict[str, int] = {}
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        yield found
    events = [e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]
    sizes = [e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())]
    sums = list(itertools.accumulate(sizes))
    found |= {"peak": max(sums), "left": sums[-1]}
