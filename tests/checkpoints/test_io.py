"""Failed and interrupted saves keep the earlier checkpoints intact."""

import os
import signal
import time
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from sid_lsg.callbacks import Checkpoint
from sid_lsg.checkpoints import io
from sid_lsg.checkpoints.io import write_file
from sid_lsg.cli import main
from tests.helpers import forked
from tests.helpers.checkpoint_runs import Iterations, fit, full_disk, load, names, refused, warned
from tests.helpers.checkpoints import newest_path
from tests.helpers.comparison import same


@pytest.mark.slow
@pytest.mark.parametrize("background", [True, False])
def test_training_continues_when_the_disk_is_full(
    small_sd: str, run: Path, empty: Path, no_room: Callable[..., None], background: bool
) -> None:
    no_room(2, 3)
    checkpoint = Checkpoint(every_n_steps=1, background=background)
    (first, second) = warned(lambda: fit(small_sd, empty, checkpoint, max_steps=4))
    folder = empty / "checkpoints"
    for number, message in ((2, first), (3, second)):
        assert f"could not save '{folder / f'000000{number}.ckpt'}' (File too large)" in message
        assert f"'{folder / '0000001.ckpt'}' is unchanged. Training continues" in message
    assert names(empty) == ["0000004.ckpt", "last.ckpt"]
    assert same(load(folder / "last.ckpt")["state_dict"],
                load(run / "checkpoints/0000004.ckpt")["state_dict"])  # fmt: skip


@pytest.mark.slow
def test_a_failed_first_save_leaves_no_checkpoint(
    command: list[str], no_room: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    no_room(1, 2, 3)
    message = refused(command, capsys)
    assert "0000003.ckpt' (File too large); there is no earlier one." in message
    assert "Make room, then start again." in message


@pytest.mark.slow
def test_a_failed_final_save_is_an_error(
    command: list[str], empty: Path, no_room: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    no_room(3)
    message = refused(command, capsys)
    assert "--trainer.default_root_dir: could not save " in message
    assert "0000003.ckpt' (File too large); " in message
    assert "0000002.ckpt' is unchanged. Make room, then continue from there with --ckpt" in message
    assert set(names(empty)) - {"good.ckpt"} == {"0000002.ckpt", "last.ckpt"}
    assert newest_path(empty / "checkpoints") == (empty / "checkpoints/last.ckpt", [])
    no_room()
    main([*command, "--ckpt_path=last"])
    assert load(empty / "checkpoints/last.ckpt")["global_step"] == 3


@pytest.mark.parametrize("room", [True, False])
def test_the_copy_is_freed_when_the_file_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: bool
) -> None:
    """Also after an error, whose traceback would hold it."""
    copies = []

    def write(checkpoint: Any, path: Path) -> None:
        copies.append(weakref.ref(checkpoint["state_dict"]["weight"]))
        with nullcontext() if room else full_disk():
            write_file(checkpoint, path)

    monkeypatch.setattr(io, "write_file", write)
    writer = io.SafeCheckpointIO()
    writer.then = lambda: None
    weight = torch.ones(2**20)
    writer.save_checkpoint({"state_dict": {"weight": weight}}, tmp_path / "x.ckpt")
    with nullcontext() if room else pytest.raises(OSError, match="File too large"):
        writer.finish()
    end = time.monotonic() + 60
    while copies[0]() is not None:
        assert time.monotonic() < end
        time.sleep(0.01)
    assert [path.name for path in tmp_path.iterdir()] == ["x.ckpt"] * room


def save_slowly(small_sd: str, root: Path) -> None:
    """Train a run that takes a minute to save iteration 4."""
    write = torch.save

    def save(found: dict[str, Any], file: Any) -> None:
        write(found, file)
        if found["global_step"] == 4:
            file.flush()
            time.sleep(60)

    torch.save = save
    fit(small_sd, root, Checkpoint(every_n_steps=2))


@pytest.mark.slow
def test_a_process_killed_while_saving_keeps_the_previous_checkpoint(
    small_sd: str, run: Path, empty: Path
) -> None:
    folder = empty / "checkpoints"
    process = forked.start(save_slowly, small_sd, empty, log=empty.with_suffix(".log"))
    end = time.monotonic() + 120
    while not any(p.stat().st_size > 100_000 for p in folder.glob(".0000004.ckpt.*.tmp")):
        assert process.is_alive()
        assert time.monotonic() < end
        time.sleep(0.02)
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert newest_path(folder) == (folder / "last.ckpt", [])
    assert (folder / "last.ckpt").readlink() == Path("0000002.ckpt")
    assert len(names(empty)) == 3
    iterations = Iterations()
    checkpoint = Checkpoint(every_n_steps=2)
    assert warned(lambda: fit(small_sd, empty, checkpoint, iterations, ckpt_path="last")) == []
    assert iterations.ran == [2, 3, 4, 5]
    assert names(empty) == ["0000006.ckpt", "last.ckpt"]  # the partial file was removed
    assert (empty / "metrics.csv").read_bytes() == (run / "metrics.csv").read_bytes()
    assert same(load(folder / "last.ckpt")["state_dict"],
                load(run / "checkpoints/last.ckpt")["state_dict"])  # fmt: skip
