"""The free memory of the machine, and of the job that a scheduler or a container limits."""

from pathlib import Path

import pytest

from sid_lsg.distributed.host_memory import has_room

GIB = 2**30
MACHINE = {"proc/meminfo": "MemTotal: 104857600 kB\nMemAvailable: 52428800 kB\nHugePages_Total: 0"}
STAT = f"anon 5\nactive_file {GIB}\ninactive_file {GIB}\ntotal_active_file {4 * GIB}\n"


def group(folder: str, limit: str, used: int, old: bool = False) -> dict[str, str]:
    names = ("limit_in_bytes", "usage_in_bytes") if old else ("max", "current")
    values = dict(zip(names, (limit, str(used)), strict=True))
    return {f"{folder}/memory.{n}": v for n, v in values.items()} | {f"{folder}/memory.stat": STAT}


NEW, OLD = "sys/fs/cgroup", "sys/fs/cgroup/memory"
JOB = {"proc/self/cgroup": "0::/slurm/job\n"}
OLD_JOB = {"proc/self/cgroup": "5:devices:/\n4:memory:/slurm/job\n0::/\n"}
CASES: dict[str, tuple[dict[str, str], int]] = {  # files, and the most GiB that fit
    "nothing is known": ({}, -1),
    "a machine of 100 GiB": (MACHINE, 40),
    "without limits": (MACHINE | JOB | group(f"{NEW}/slurm/job", "max", 0), 40),
    "a job of 20 GiB": (MACHINE | JOB | group(f"{NEW}/slurm/job", str(20 * GIB), 10 * GIB), 10),
    "an outer group": (MACHINE | JOB | group(f"{NEW}/slurm", str(20 * GIB), 13 * GIB), 7),
    "a container": (
        MACHINE | {"proc/self/cgroup": "0::/outer/name\n"} | group(NEW, str(20 * GIB), 15 * GIB),
        5,
    ),
    "a full job": (MACHINE | JOB | group(f"{NEW}/slurm/job", str(20 * GIB), 21 * GIB), -1),
    "an old job": (
        MACHINE | OLD_JOB | group(f"{OLD}/slurm/job", str(20 * GIB), 15 * GIB, old=True),
        7,
    ),
    "an old job without limits": (
        MACHINE | OLD_JOB | group(f"{OLD}/slurm/job", str(2**63 - 4096), 15 * GIB, old=True),
        40,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_tenth_of_the_memory_stays_free(case: str, tmp_path: Path) -> None:
    files, most = CASES[case]
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert has_room(max(most, 0) * GIB, tmp_path) == (most >= 0)
    assert not has_room((most + 1) * GIB, tmp_path)
