"""OpenMP's threads wait without spinning while other programs use the processors."""

import os
import sys
import threading
from pathlib import Path

import pytest
import torch

from sid_lsg.cli import main
from sid_lsg.commands.table import COMMANDS
from sid_lsg.distributed import threads
from sid_lsg.distributed.threads import Load, Team, waited, watch_load

HALF = 500_000_000


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the names of the threads that would start; on two processors, by default."""
    names: list[str] = []
    monkeypatch.setattr(threads._Watch, "start", lambda self: names.append(self.name))
    monkeypatch.setattr(threads, "_processors", lambda: 2)
    for name in [*os.environ]:
        if name.startswith(("OMP_", "GOMP_")):
            monkeypatch.delenv(name)
    return names


def test_the_load_is_watched(started: list[str]) -> None:
    watch_load()
    assert started == (["sid_lsg.watch_load"] if sys.platform == "linux" else [])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OMP_NUM_THREADS", "1"),
        ("OMP_WAIT_POLICY", "active"),
        ("OMP_PROC_BIND", "true"),
        ("OMP_PLACES", "cores"),
        ("GOMP_SPINCOUNT", "1000"),
        ("GOMP_CPU_AFFINITY", "0 1"),
    ],
)
def test_the_users_settings_are_kept(
    started: list[str], monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    watch_load()
    assert started == []
    assert os.environ[name] == value


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_watches_the_load(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr("sid_lsg.cli.watch_load", lambda: calls.append(command))
    monkeypatch.setattr("sid_lsg.cli.import_module", lambda name: object())
    with pytest.raises(AttributeError):  # the command itself does not run
        main([command])
    assert calls == [command]


def test_one_processor_is_not_watched(started: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_processors", lambda: 1)
    watch_load()
    assert started == []


def test_systems_that_do_not_count_waiting_are_not_watched(
    started: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert waited(tmp_path / "none") is None
    (tmp_path / "7").mkdir()
    assert waited(tmp_path) is None
    monkeypatch.setattr(threads, "waited", lambda: None)
    watch_load()
    assert started == []


def test_times_are_summed_over_threads(tmp_path: Path) -> None:
    for name, text in {"7": "100 20 3\n", "8": "50 5 1\n", "9": ""}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "schedstat").write_text(text)
    assert waited(tmp_path) == (150, 25)


def decisions(shares: list[float]) -> list[bool]:
    """Return whether the machine is busy, after half seconds with shares of waiting."""
    load, ran, waiting, found = Load(), 0, 0, []
    for share in shares:
        ran += round(2 * HALF * (1 - share))
        waiting += round(2 * HALF * share)
        found.append(load.update((ran, waiting)))
    return found


def test_a_busy_machine_is_known_at_once_and_a_quiet_one_after_seconds() -> None:
    assert decisions([0.0, 0.1, 0.02, 0.2]) == [False] * 4
    assert decisions([0.01, 0.5, 0.5]) == [False, True, True]
    assert decisions([0.5, *[0.01] * 8]) == [True] * 6 + [False] * 3
    assert decisions([0.5, *[0.01] * 5, 0.2, 0.01]) == [True] * 8


def test_spinning_is_tried_again_more_and_more_rarely() -> None:
    found = decisions([0.5] * 400)
    tries = [turn for turn, busy in enumerate(found) if not busy]
    assert tries == [10, 31, 72, 153, 234, 315, 396]
    assert found[:10] == [True] * 10
    # Beside a program of low priority, threads wait less when they spin.
    assert decisions([0.5] * 11 + [0.1] * 30) == [True] * 10 + [False] * 31
    # Another load, later, is a new one.
    later = decisions([0.5] * 11 + [0.1] * 30 + [0.5] * 12)
    assert [turn for turn, busy in enumerate(later) if not busy] == [*range(10, 41), 51]


def test_an_idle_process_says_nothing_of_the_machine() -> None:
    load = Load()
    assert load.update((HALF, HALF))
    for _ in range(100):
        assert load.update((HALF + 1000, HALF))
    assert load.update((0, 0))  # its threads have ended


@pytest.mark.skipif(sys.platform != "linux", reason="needs libgomp")
def test_a_team_has_its_own_threads_and_ends_them() -> None:
    def count() -> int:
        return len(list(Path("/proc/self/task").iterdir()))

    torch.ones(10).sum()
    before, python = count(), threading.active_count()
    team = Team(4)
    assert count() == before + 4
    again = torch.ones(100_000).sum()
    team.end()
    for _ in range(100):  # the threads end after their first one
        if count() == before:
            break
        threading.Event().wait(0.02)
    assert (count(), threading.active_count()) == (before, python)
    assert again == torch.ones(100_000).sum()
