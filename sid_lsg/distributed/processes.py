"""Launch processes, split work between them, and gather their results."""

import time
from datetime import timedelta
from itertools import count
from typing import Any, TypeVar

import torch.distributed as dist
from lightning.fabric import Fabric
from lightning.fabric.strategies import DDPStrategy
from lightning.fabric.utilities.exceptions import MisconfigurationException

from sid_lsg.distributed.failures import place_of, wait_until_ready, watch
from sid_lsg.messages.errors import UsageError

_SHORTEST, _LONGEST_NAP = 0.002, 0.25  # seconds between two looks at the store
_SHARE = 0.02  # of the time waited so far
_meetings = count()
_LONGEST = timedelta(days=1)  # processes wait for the slowest one's images; failures are shared

Item = TypeVar("Item")


def launch(accelerator: str, devices: int, num_nodes: int = 1) -> Fabric:
    """Start one process per device; a failure of one ends all.

    Raises:
        UsageError: If the devices are not available.
    """
    try:
        fabric = Fabric(
            accelerator=accelerator,
            devices=devices,
            num_nodes=num_nodes,
            strategy=DDPStrategy(timeout=_LONGEST) if devices * num_nodes > 1 else "auto",
        )
    except (MisconfigurationException, ValueError, RuntimeError) as error:
        raise UsageError(f"--accelerator {accelerator} --devices {devices}: {error}") from error
    wait_until_ready(devices * num_nodes)
    fabric.launch()
    if fabric.world_size > 1:
        strategy: Any = fabric.strategy
        place = place_of(strategy.cluster_environment, fabric.is_global_zero, fabric.world_size)
        launched = getattr(strategy.launcher, "procs", [])
        watch(place, launched.clear)  # Lightning's observer would kill this process
    return fabric


def process() -> tuple[int, int]:
    """Return the rank of this process and the number of processes."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def meet() -> None:
    """Wait for all processes, however long one of them takes. Collective.

    NCCL ends a collective operation that takes too long. Here the processes look at their store;
    the one that hosts it, and the watch for failures, end the waiting if a process ends.
    """
    rank, processes = process()
    if processes == 1:
        return
    store, key = dist.distributed_c10d._get_default_store(), f"sid_lsg/meeting {next(_meetings)}"
    begin = time.monotonic()
    for step in ("come", "gone"):
        store.add(f"{key} {step}", 1)
        # The first process may host the store: it stays until the others have looked.
        while (rank == 0 or step == "come") and store.add(f"{key} {step}", 0) < processes:
            # Often at first: what follows, such as pointing to a new file, should not wait.
            time.sleep(min(max(_SHARE * (time.monotonic() - begin), _SHORTEST), _LONGEST_NAP))


def check_enough(images: int, option: str) -> None:
    """Check that there are two images for the scores, and one for each process.

    Raises:
        UsageError: If there are fewer; a process without images cannot reduce the scores.
    """
    if images < max(2, process()[1]):
        raise UsageError(
            f"--{option}: {images} image{'' if images == 1 else 's'} for {process()[1]} "
            f"process{'' if process()[1] == 1 else 'es'}. Scores need two images, and one for each "
            "process."
        )


def batches_of(total: int, size: int) -> list[range]:
    """Split range(total) into batches of `size`, or smaller if a process would have none."""
    size = max(1, min(size, total // process()[1]))
    return [range(start, min(start + size, total)) for start in range(0, total, size)]


def share_of(total: int, size: int) -> list[range]:
    """Return the batches of `batches_of` that belong to this process."""
    rank, world = process()
    return batches_of(total, size)[rank::world]


def gather(items: list[Item]) -> list[Item]:
    """Return the items of all processes, in the order of the ranks."""
    _, world = process()
    if world == 1:
        return items
    parts: list[list[Item] | None] = [None] * world
    dist.all_gather_object(parts, items)
    return [item for part in parts for item in part or []]
