"""Running a study's tasks: their order, devices, failures and interruptions."""

import json
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sid_lsg.messages.errors import Interrupted, UsageError
from sid_lsg.study import execute as execution
from sid_lsg.study.execute import alone, done_share, duration, execute
from sid_lsg.study.tasks import Task
from tests.helpers.small_studies import task


def test_done_share_and_duration(tmp_path: Path) -> None:
    run = replace(task(tmp_path / "run", {}), iterations=200)
    assert done_share(run) == 0
    run.folder.mkdir()
    (run.folder / "metrics.csv").write_text("loss,step\n1.5,10\n1.4,50\n")
    assert done_share(run) == 0.25
    (run.folder / "metrics.csv").write_text("loss,step\n1.5,10\n1.4,")
    assert done_share(run) == 0
    assert [duration(s) for s in (-1, 8, 90, 3540, 3600, 7265)] == [
        "0 s", "8 s", "2 min", "59 min", "1 h 00 min", "2 h 01 min",
    ]  # fmt: skip


def script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str) -> None:
    """Make tasks run a small script instead of this project."""
    path = tmp_path / "python.sh"
    path.write_text(f"#!/bin/bash\nshift 2\n{text}\n")
    path.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(path))
    monkeypatch.setattr(execution, "_POLL_S", 0.01)


def at(folder: Path, *command: str) -> Task:
    return task(folder, {}, ("fit", str(folder), *command))


WRITES = 'mkdir -p $2; echo "$*" >> $2/said; echo {} > $2/summary.json'


def test_tasks_run_in_order_and_only_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script(monkeypatch, tmp_path, f'{WRITES}; echo "$OMP_NUM_THREADS" > $2/threads')
    todo = [[at(tmp_path / "a"), at(tmp_path / "b")], [at(tmp_path / "c")]]
    done: list[str] = []
    with alone(tmp_path) as lock:
        failed = execute(todo, 2, 3, lock, lambda t: done.append(t.folder.name))
        assert failed == []
        assert sorted(done) == ["a", "b", "c"]
        assert done.index("a") < done.index("b")
        assert (tmp_path / "c/threads").read_text() == "3\n"
        assert json.loads((tmp_path / "a.json").read_text()) == {}
        assert "[1/3] a run" in capsys.readouterr().out
        assert execute(todo, 2, 3, lock, lambda t: done.append("again")) == []
    assert "again" not in done
    assert (tmp_path / "a/said").read_text().count("\n") == 1


@pytest.mark.parametrize(
    ("visible", "found", "processes", "used"),
    [
        (None, 2, 2, {"0", "1"}),
        (None, 0, 2, {"unset"}),
        ("3,5", 8, 2, {"3", "5"}),
        ("MIG-aa,MIG-bb", 1, 2, {"MIG-aa", "MIG-bb"}),
        ("GPU-cc", 1, 2, {"GPU-cc"}),
        ("4,-1,6", 2, 2, {"4"}),
        ("", 0, 2, {""}),
        ("3,5", 2, 1, {"3,5"}),  # one run at a time may use all
    ],
)
def test_runs_at_a_time_use_different_devices(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    visible: str | None,
    found: int,
    processes: int,
    used: set[str],
) -> None:
    sees = 'echo "${CUDA_VISIBLE_DEVICES-unset}" > $2/device; sleep 0.1'
    script(monkeypatch, tmp_path, f"{WRITES}; {sees}")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: found)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    whole = replace(at(tmp_path / "whole"), settings={"trainer.devices": 2})
    todo = [[at(tmp_path / name)] for name in "abcd"]
    with alone(tmp_path) as lock:
        assert execute(todo, processes, None, lock, lambda _: None) == []
        assert execute([[whole]], 2, None, lock, lambda _: None) == []
    assert {(tmp_path / name / "device").read_text().strip() for name in "abcd"} == used
    assert (tmp_path / "whole/device").read_text().strip() == (
        visible or ("unset" if visible is None else "")
    )


def test_failures_are_reported_and_other_tasks_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = 'case $2 in */bad) echo "error: no luck"; exit 3;; */idle) exit 0;; esac'
    script(monkeypatch, tmp_path, f"{cases}; {WRITES}")
    todo = [[at(tmp_path / "bad"), at(tmp_path / "after")], [at(tmp_path / "idle")],
            [at(tmp_path / "good")]]  # fmt: skip
    with alone(tmp_path) as lock:
        bad, idle = execute(todo, 1, None, lock, lambda t: None)
    assert "status 3" in bad
    assert "error: no luck" in bad
    assert str(tmp_path / "bad.log") in bad
    assert "status 0" in idle
    assert "it printed nothing" in idle
    assert not (tmp_path / "after").exists()
    assert (tmp_path / "good/summary.json").exists()


def test_an_interruption_ends_running_tasks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tasks receive SIGTERM and may finish; no process continues afterwards."""
    script(monkeypatch, tmp_path, 'mkdir -p $2; trap "echo saved > $2/saved; exit 143" TERM; '
           "touch $2/begun; while true; do sleep 0.05; done")  # fmt: skip
    todo = [[at(tmp_path / "a")], [at(tmp_path / "b")]]

    def look(task: Task) -> float:
        if all((tmp_path / name / "begun").exists() for name in "ab"):
            raise Interrupted("Ctrl-C", 130)
        return 0.0

    monkeypatch.setattr(execution, "_PROGRESS_S", 0.01)
    monkeypatch.setattr(execution, "done_share", look)
    with alone(tmp_path) as lock, pytest.raises(Interrupted):
        execute(todo, 2, None, lock, lambda t: None)
    assert all((tmp_path / name / "saved").exists() for name in "ab")
    with alone(tmp_path):  # no process holds the lock any more
        pass


def test_a_task_that_ignores_sigterm_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = "touch $2/begun; while true; do sleep 0.05; done"
    script(monkeypatch, tmp_path, f'mkdir -p $2; trap "" TERM; {loop}')

    def look(task: Task) -> float:
        if (tmp_path / "a/begun").exists():
            raise Interrupted("Ctrl-C", 130)
        return 0.0

    monkeypatch.setattr(execution, "_PROGRESS_S", 0.01)
    monkeypatch.setattr(execution, "_END_S", 0.3)
    monkeypatch.setattr(execution, "done_share", look)
    with alone(tmp_path) as lock, pytest.raises(Interrupted):
        execute([[at(tmp_path / "a")]], 1, None, lock, lambda t: None)
    for _ in range(100):  # child processes of the killed task end a moment later
        with suppress(UsageError), alone(tmp_path):
            break
        time.sleep(0.1)
    else:
        pytest.fail("the folder is still held")


def test_two_studies_cannot_share_a_folder(tmp_path: Path) -> None:
    """A study also excludes processes that a killed study left running."""
    with alone(tmp_path) as lock:
        with pytest.raises(UsageError, match="--output: .* in use"), alone(tmp_path):
            pass
        left = subprocess.Popen(["sleep", "30"], pass_fds=[lock])
    with pytest.raises(UsageError, match="--output: .* in use"), alone(tmp_path):
        pass
    left.kill()
    left.wait()
    with alone(tmp_path):
        pass
