"""Tell how much host memory is free, for the machine and for the job that this process is part of.

Schedulers and containers limit the memory of a job by Linux's control groups.
"""

from collections.abc import Iterator
from pathlib import Path

# The limit, the use, and the kinds of file cache in the use, which is freed when it is needed.
_NEW = ("memory.max", "memory.current", ("active_file", "inactive_file"))
_OLD = (
    "memory.limit_in_bytes",
    "memory.usage_in_bytes",
    ("total_active_file", "total_inactive_file"),
)


def has_room(size: int, root: Path = Path("/")) -> bool:
    """Return True if `size` bytes fit, and a tenth of the memory stays free.

    Args:
        size: The number of bytes.
        root: Where the system's folders proc and sys are.

    Returns:
        Whether they fit; False if the system does not say how much is free.
    """
    found = [*_machine(root), *_groups(root)]
    return bool(found) and all(size + total / 10 <= free for free, total in found)


def _machine(root: Path) -> Iterator[tuple[int, int]]:
    try:
        rows = [line.split() for line in (root / "proc/meminfo").read_text().splitlines()]
        kibibytes = {row[0]: int(row[1]) for row in rows}
        yield kibibytes["MemAvailable:"] * 1024, kibibytes["MemTotal:"] * 1024
    except (OSError, ValueError, LookupError):  # not Linux
        return


def _groups(root: Path) -> Iterator[tuple[int, int]]:
    """Yield the free and the total bytes of each group that limits this process."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, kinds, path = line.split(":", 2)
        if kinds not in ("", "memory"):
            continue
        top = root / ("sys/fs/cgroup/memory" if kinds else "sys/fs/cgroup")
        own = top / path.strip("/")
        # A container sees its own group as the top one, but may be told the outer path.
        for folder in {top, own, *(p for p in own.parents if p.is_relative_to(top))}:
            if (found := _group(folder, *(_OLD if kinds else _NEW))) is not None:
                yield found


def _group(folder: Path, limit: str, use: str, cache: tuple[str, ...]) -> tuple[int, int] | None:
    try:
        total, used = (int((folder / name).read_text()) for name in (limit, use))
        rows = [line.split() for line in (folder / "memory.stat").read_text().splitlines()]
    except (OSError, ValueError):  # no such group, or no limit: "max"
        return None
    files = sum(int(number) for name, number in rows if name in cache)
    return max(0, total - used + files), total
