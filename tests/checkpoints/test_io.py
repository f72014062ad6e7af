"""Checkpoint files in real runs of the tiny pipeline: damaged, refused, interrupted, continued."""

import csv
import json
import os
import pickle
import resource
import shutil
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
import yaml

from sid_lsg.callbacks import Checkpoint, Metrics, Progress, Throughput
from sid_lsg.checkpoints.io import SafeCheckpointIO
from sid_lsg.checkpoints.record import RECORD, SCHEMA
from sid_lsg.checkpoints.resume import check_optimizers, open_resumed
from sid_lsg.cli import main
from sid_lsg.data.prompts import PromptDataModule
from sid_lsg.loggers import CSVLogger
from sid_lsg.messages.errors import UsageError
from sid_lsg.optimizers.adam import AdamWithoutMomentum
from sid_lsg.training.module import SiDLSG
from tests.helpers import forked
from tests.helpers.checkpoints import damage, newest_path
from tests.helpers.comparison import same
from tests.helpers.damage import Trap, flip

PROMPTS = ["a red cat", "two dogs on a log", "something else"]
STEPS = 6


class Iterations(L.Callback):
    """Remembers which iterations ran."""

    def __init__(self) -> None:
        self.ran: list[int] = []

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, index: int) -> None:
        self.ran.append(batch.iteration)


def fit(
    teacher: str,
    root: Path,
    *callbacks: L.Callback,
    max_steps: int = STEPS,
    ckpt_path: str | None = None,
    optimizer: Any = torch.optim.Adam,
    weights_only: bool | None = None,
) -> SiDLSG:
    def make(parameters: Any) -> torch.optim.Optimizer:
        return optimizer(parameters, lr=1e-3)

    module = SiDLSG(teacher, optimizer_fake=make, optimizer_generator=make)
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=max_steps,
        max_epochs=-1,
        default_root_dir=root,
        logger=CSVLogger(str(root)),
        callbacks=list(callbacks),
        log_every_n_steps=1,
        use_distributed_sampler=False,
        enable_model_summary=False,
        enable_progress_bar=any(isinstance(c, Progress) for c in callbacks),
    )
    data = PromptDataModule(str(root.parent / "prompts.txt"), batch_size=2, num_workers=0)
    trainer.fit(module, data, ckpt_path=ckpt_path, weights_only=weights_only)
    return module


@pytest.fixture(scope="module")
def run(small_sd: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing has interrupted, with a checkpoint of every second iteration."""
    root = tmp_path_factory.mktemp("checkpoints") / "run"
    (root.parent / "prompts.txt").write_text("\n".join(PROMPTS))
    fit(small_sd, root, Checkpoint(every_n_steps=2, keep=-1))
    return root


@pytest.fixture
def copied(run: Path, tmp_path: Path) -> Path:
    shutil.copy(run.parent / "prompts.txt", tmp_path)
    return Path(shutil.copytree(run, tmp_path / "run", symlinks=True))


@pytest.fixture
def empty(run: Path, tmp_path: Path) -> Path:
    """A run directory that is still to be made."""
    shutil.copy(run.parent / "prompts.txt", tmp_path)
    return tmp_path / "run"


def load(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


def names(root: Path) -> list[str]:
    return sorted(path.name for path in (root / "checkpoints").iterdir())


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def steps(root: Path) -> list[int]:
    with (root / "metrics.csv").open() as file:
        return [int(row["step"]) for row in csv.DictReader(file)]


def warned(action: Callable[[], Any]) -> list[str]:
    """Return the warnings that are about checkpoints."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        action()
    texts = [str(warning.message) for warning in caught]
    return [
        t for t in texts if t.startswith(("--ckpt_path", "--checkpoint", "could not", "The ch"))
    ]


# ---------------------------------------------------------------------- continuing


@pytest.mark.parametrize("step", [2, 4])
def test_a_continued_run_is_the_uninterrupted_one(
    small_sd: str, run: Path, copied: Path, step: int
) -> None:
    """As if killed just after the checkpoint of this step: nothing later is there."""
    folder = copied / "checkpoints"
    for path in folder.iterdir():
        if path.name != f"{step:07d}.ckpt":
            path.unlink()
    iterations, progress = Iterations(), Progress(refresh_rate=1)
    checkpoint = Checkpoint(every_n_steps=2, keep=-1)
    written = (folder / f"{step:07d}.ckpt").stat()
    fit(small_sd, copied, checkpoint, iterations, progress, ckpt_path="last")
    assert iterations.ran == list(range(step, STEPS))
    assert (folder / f"{step:07d}.ckpt").stat().st_mtime_ns == written.st_mtime_ns  # once is enough
    assert progress.train_progress_bar.n == STEPS
    assert (copied / "metrics.csv").read_bytes() == (run / "metrics.csv").read_bytes()
    for name in ("0000004.ckpt", "last.ckpt"):
        mine, whole = (load(root / "checkpoints" / name) for root in (copied, run))
        mine["callbacks"].pop(progress.state_key, None)
        differing = [key for key in whole if not same(mine[key], whole[key])]
        assert differing == []


@pytest.mark.parametrize(("step", "saved"), [(STEPS, []), (4, ["0000004.ckpt"])])
def test_a_run_that_continues_in_another_directory_lacks_nothing_there(
    small_sd: str, run: Path, empty: Path, step: int, saved: list[str]
) -> None:
    """Also a complete one, of which nothing is left to do but to save it there."""
    source, checkpoint = run / f"checkpoints/{step:07d}.ckpt", Checkpoint(every_n_steps=4, keep=-1)
    if step == STEPS:
        source = run / "checkpoints/last.ckpt"
    fit(small_sd, empty, checkpoint, ckpt_path=str(source))
    assert names(empty) == [*saved, f"{STEPS:07d}.ckpt", "last.ckpt"]
    weights = [load(root / "checkpoints/last.ckpt")["state_dict"] for root in (run, empty)]
    assert same(*weights)


def test_a_redone_iterations_row_is_all_new(small_sd: str, copied: Path) -> None:
    path = copied / "metrics.csv"
    with path.open(newline="") as file:
        found = [*csv.DictReader(file)]
    for row in found:
        row["old"] = row["step"]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, found[0].keys())
        writer.writeheader()
        writer.writerows(found)
    ckpt_path = str(copied / "checkpoints/0000004.ckpt")
    fit(small_sd, copied, Checkpoint(every_n_steps=2, keep=-1), ckpt_path=ckpt_path)
    with path.open(newline="") as file:
        old = {row["step"]: row["old"] for row in csv.DictReader(file)}
    assert {step for step, value in old.items() if value} == {"1", "2", "3", "4"}
    assert max(map(int, old)) == STEPS


def test_counters_in_a_checkpoint_are_those_of_its_iteration(run: Path) -> None:
    for step in (2, 4):
        saved = load(run / f"checkpoints/{step:07d}.ckpt")
        assert saved["global_step"] == step
        progress = saved["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        counts = {"ready": step, "started": step, "processed": step, "completed": step}
        assert progress == {"total": counts, "current": counts, "is_last_batch": False}


def test_the_row_of_an_iteration_is_on_disk_before_its_checkpoint(
    small_sd: str, empty: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    class Watching(SafeCheckpointIO):
        def save_checkpoint(self, checkpoint: Any, path: Any, storage_options: Any = None) -> None:
            seen.append((checkpoint["global_step"], steps(empty)))
            if checkpoint["global_step"] == 2:
                assert (empty / "metrics.csv").read_text().count(",1.0,") == 3  # the late ones
            super().save_checkpoint(checkpoint, path)

    class Late(L.Callback):
        def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
            trainer.logger.log_metrics({"late": 1.0}, trainer.global_step)

    monkeypatch.setattr("sid_lsg.callbacks.checkpoint.SafeCheckpointIO", Watching)
    fit(small_sd, empty, Checkpoint(every_n_steps=2, keep=2), Late(), max_steps=3)
    assert seen == [(2, [0, 1, 2]), (3, [0, 1, 2, 3])]
    loops = load(empty / "checkpoints/0000002.ckpt")["loops"]["fit_loop"]
    assert not loops["epoch_loop.batch_progress"]["is_last_batch"]  # the third is


def test_saving_counts_as_no_time_of_an_iteration(
    small_sd: str, empty: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save: Any = SafeCheckpointIO.save_checkpoint

    def slowly(*arguments: Any, **options: Any) -> None:
        time.sleep(3)
        save(*arguments, **options)

    monkeypatch.setattr(SafeCheckpointIO, "save_checkpoint", slowly)
    fit(small_sd, empty, Checkpoint(every_n_steps=1), Throughput(), max_steps=2)
    with (empty / "metrics.csv").open() as file:
        rates = [float(row["images_per_s"]) for row in csv.DictReader(file)]
    assert min(rates) > 2 / 3


# ---------------------------------------------------------------------- damaged files


def test_a_whole_file_is_whole(run: Path) -> None:
    assert [damage(path) for path in sorted((run / "checkpoints").iterdir())] == [""] * 4
    assert newest_path(run / "checkpoints") == (run / "checkpoints/last.ckpt", [])


@pytest.mark.parametrize(
    ("share", "seen"),
    [(0, "is not a checkpoint"), (1e-6, "truncated"), (0.001, "truncated"), (0.5, "truncated"),
     (0.999, "truncated"), (1 - 1e-7, "truncated")],
)  # fmt: skip
def test_truncation_is_seen(run: Path, tmp_path: Path, share: float, seen: str) -> None:
    data = (run / "checkpoints/last.ckpt").read_bytes()
    path = tmp_path / "0000001.ckpt"
    path.write_bytes(data[: int(share * len(data) + 2 * (0 < share < 1e-3))])
    assert seen in damage(path)


def test_a_changed_bit_is_seen_or_harmless(run: Path, tmp_path: Path) -> None:
    """In tensors, in the pickled part at the start, and in the directory at the end."""
    source, path = run / "checkpoints/last.ckpt", tmp_path / "0000001.ckpt"
    expected, size = load(source), source.stat().st_size
    rng, found = np.random.default_rng(0), []
    spans = [(0, size)] * 6 + [(0, 50_000)] * 8 + [(size - 50_000, size)] * 14
    for place in (int(rng.integers(*span)) for span in spans):
        shutil.copy(source, path)
        flip(path, place)
        found.append(damage(path))
        if not found[-1]:
            assert same(load(path), expected), place
    assert sum(map(bool, found)) > 15
    assert any("Bad CRC-32" in what for what in found)


def test_other_files_are_no_checkpoints(run: Path, tmp_path: Path) -> None:
    path = tmp_path / "0000001.ckpt"
    path.write_text("hello")
    assert damage(path) == "is not a checkpoint"
    path.unlink()
    path.mkdir()
    assert damage(path) == "is incomplete: it has no manifest.json"
    assert "No such file" in damage(tmp_path / "0000002.ckpt")
    torch.save({"state_dict": {}}, tmp_path / "0000003.ckpt")
    with pytest.raises(UsageError, match="not a checkpoint of a training: it lacks 'optimizer_st"):
        open_resumed(str(tmp_path / "0000003.ckpt"), tmp_path)


def test_last_passes_over_damaged_files(small_sd: str, run: Path, copied: Path) -> None:
    folder = copied / "checkpoints"
    flip(folder / "0000006.ckpt", 500_000)
    (folder / "0000004.ckpt").write_bytes((folder / "0000004.ckpt").read_bytes()[:-1])
    iterations = Iterations()
    checkpoint = Checkpoint(every_n_steps=2, keep=-1)
    (message,) = warned(lambda: fit(small_sd, copied, checkpoint, iterations, ckpt_path="last"))
    assert iterations.ran == [2, 3, 4, 5]
    for said in ("0000006.ckpt' is corrupted (Bad CRC-32", "0000004.ckpt' is truncated",
                 f"The run continues from '{folder / '0000002.ckpt'}'"):  # fmt: skip
        assert said in message
    assert (copied / "metrics.csv").read_bytes() == (run / "metrics.csv").read_bytes()
    assert same(load(folder / "last.ckpt")["state_dict"],
                load(run / "checkpoints/last.ckpt")["state_dict"])  # fmt: skip


def test_good_counts_and_so_does_what_a_dangling_link_leaves(copied: Path) -> None:
    folder = copied / "checkpoints"
    (folder / "0000002.ckpt").rename(folder / "good.ckpt")
    (folder / "0000006.ckpt").unlink()
    path, (what,) = newest_path(folder)
    assert path == folder / "0000004.ckpt"
    assert "0000006.ckpt' cannot be read (No such file" in what
    path.write_bytes(b"")
    assert newest_path(folder)[0] == folder / "good.ckpt"


def test_without_any_whole_checkpoint_nothing_begins(
    command: list[str], copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in (2, 4, 6):
        flip(copied / f"checkpoints/000000{number}.ckpt", 500_000)
    before = contents(copied.parent)
    message = refused(command, capsys, "--ckpt_path=last")
    assert message.startswith("error: --ckpt_path last: there is no whole checkpoint in ")
    assert message.count("Bad CRC-32") == 3
    assert contents(copied.parent) == before


def test_last_without_a_checkpoint_says_that_it_begins(small_sd: str, empty: Path) -> None:
    (message,) = warned(lambda: fit(small_sd, empty, Checkpoint(), max_steps=1, ckpt_path="last"))
    assert "there is no checkpoint in " in message
    assert message.endswith("yet. The training begins afresh.")
    assert names(empty) == ["0000001.ckpt", "last.ckpt"]


def test_a_named_damaged_file_is_refused(small_sd: str, copied: Path) -> None:
    path = copied / "checkpoints/0000004.ckpt"
    flip(path, 500_000)
    with pytest.raises(UsageError, match=r"^--ckpt_path: .*0000004.ckpt' is corrupted \(Bad CRC"):
        fit(small_sd, copied, Checkpoint(), ckpt_path=str(path))


@pytest.mark.parametrize("kind", ["pickle", "zip"])
def test_code_is_never_executed(
    small_sd: str, run: Path, empty: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    mark, path = empty.parent / "unpickled", empty.parent / "0000001.ckpt"
    if kind == "pickle":
        path.write_bytes(pickle.dumps(Trap(mark)))
    else:
        torch.save(load(run / "checkpoints/last.ckpt") | {"extra": Trap(mark)}, path)
    what = "is not a checkpoint" if kind == "pickle" else r"holds \w+.mkdir, which is not plain da"
    with pytest.raises(UsageError, match=what):
        fit(small_sd, empty, Checkpoint(), ckpt_path=str(path), weights_only=False)
    with pytest.raises(UsageError, match=what):
        open_resumed(str(path), empty)
    assert not mark.exists()


# ---------------------------------------------------------------------- files that belong elsewhere


@pytest.fixture
def command(small_sd: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(sys, "argv", ["sid_lsg"])
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")  # the command line sets it; put it back afterwards
    monkeypatch.chdir(tmp_path)
    shutil.copy(run.parent / "prompts.txt", tmp_path)
    options = {
        "model.teacher": small_sd,
        "data.prompts": "prompts.txt",
        "data.batch_size": 1,
        "data.num_workers": 0,
        "trainer.accelerator": "cpu",
        "trainer.max_steps": 3,
        "trainer.log_every_n_steps": 1,
        "trainer.default_root_dir": "run",
        "checkpoint.every_n_steps": 1,
        "image_grid.every_n_steps": 0,
        "progress.refresh_rate": 0,
    }
    return ["fit", *(f"--{name}={value}" for name, value in options.items())]


def refused(command: list[str], capsys: pytest.CaptureFixture[str], *more: str) -> str:
    """Run a command that ends with one message."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        main([*command, *more])
    assert caught.value.code == 2
    printed = capsys.readouterr().err
    assert "Traceback" not in printed
    return printed[printed.index("error: ") :].strip()


def change(path: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    """Edit what is in a checkpoint."""
    found = load(path)
    edit(found)
    path.unlink()
    torch.save(found, path)


def test_a_checkpoint_says_what_it_is(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(command)
    folder = tmp_path / "run/checkpoints"
    record = load(folder / "last.ckpt")[RECORD]
    assert record["schema"] == SCHEMA == 1
    assert record["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert {"python", "torch", "lightning", "diffusers", "transformers"} <= record[
        "versions"
    ].keys()
    assert record["config"] == yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    assert record["config"]["data"]["batch_size"] == 1

    # One of a newer version is refused, one from before there were records is not.
    change(folder / "0000003.ckpt", lambda found: found[RECORD].update(schema=SCHEMA + 1))
    before = contents(tmp_path)
    message = refused(command, capsys, "--ckpt_path=last")
    assert "is of schema 2, and this version reads up to 1. Continue with the version" in message
    assert contents(tmp_path) == before
    change(folder / "0000003.ckpt", lambda found: found.pop(RECORD))
    main([*command, "--ckpt_path=last", "--trainer.max_steps=4"])
    assert load(folder / "last.ckpt")["global_step"] == 4


def test_a_checkpoint_of_another_architecture_is_refused(
    command: list[str], copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def reshape(found: dict[str, Any]) -> None:
        weights = found["state_dict"]
        weights["generator.conv_in.weight"] = weights["generator.conv_in.weight"][:3].clone()

    path = copied / "checkpoints/0000006.ckpt"
    change(path, reshape)
    before = contents(copied.parent)
    message = refused(command, capsys, "--ckpt_path=last")
    assert "'generator.conv_in.weight' is [3, 4, 3, 3] in the file and [" in message
    change(path, lambda found: found["state_dict"].update(extra=torch.zeros(2, 3)))
    assert "'extra' is [2, 3] in the file and absent from this teacher" in refused(
        command, capsys, f"--ckpt_path={path}"
    )
    assert {p: b for p, b in contents(copied.parent).items() if ".ckpt" not in p} == {
        p: b for p, b in before.items() if ".ckpt" not in p
    }


def test_optimizers_of_another_model_are_refused(
    small_sd: str, copied: Path, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    def reshape(found: dict[str, Any]) -> None:
        found["optimizer_states"][1]["state"][0]["exp_avg"] = torch.zeros(7)

    path = copied / "checkpoints/0000004.ckpt"
    change(path, reshape)
    message = r"'exp_avg' of optimizer 2's weight 0 is \[7\] in the file and \["
    with pytest.raises(UsageError, match=message):
        fit(small_sd, copied, Checkpoint(), ckpt_path=str(path))
    before = contents(copied)
    assert "'exp_avg' of optimizer 2's weight 0 is [7]" in refused(
        command, capsys, f"--ckpt_path={path}"
    )
    assert contents(copied) == before

    adam = torch.optim.Adam([torch.zeros(2), torch.zeros(3)])
    other = torch.optim.Adam([torch.zeros(2)])
    with pytest.raises(UsageError, match="holds 1 optimizers, not 2"):
        check_optimizers([adam, adam], [adam.state_dict()])
    with pytest.raises(UsageError, match=r"groups of \[1\] weights in the file and \[2\] here"):
        check_optimizers([adam], [other.state_dict()])
    own = AdamWithoutMomentum([torch.zeros(2)])
    check_optimizers([own], [other.state_dict()], ["Adam"])
    message = "optimizer 1 is AdamWithoutMomentum in the file and Adam here"
    with pytest.raises(UsageError, match=message):
        check_optimizers([other], [own.state_dict()], ["AdamWithoutMomentum"])


def test_best_is_not_a_name_to_continue_from(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--ckpt_path best: name the file, for example .*best.ck"):
        open_resumed("best", tmp_path)


# ---------------------------------------------------------------------- interrupted saves


@contextmanager
def full_disk() -> Iterator[None]:
    """Let no file grow beyond half of a checkpoint."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.fixture
def no_room(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that makes the disk full whenever these iterations are saved."""
    save = SafeCheckpointIO.save_checkpoint

    def at(*iterations: int) -> None:
        def limited(self: Any, checkpoint: Any, *arguments: Any, **options: Any) -> None:
            full = checkpoint["global_step"] in iterations
            with full_disk() if full else nullcontext():
                save(self, checkpoint, *arguments, **options)

        monkeypatch.setattr(SafeCheckpointIO, "save_checkpoint", limited)

    return at


def test_the_training_goes_on_when_the_disk_is_full(
    small_sd: str, run: Path, empty: Path, no_room: Callable[..., None]
) -> None:
    no_room(2, 3)
    (first, second) = warned(lambda: fit(small_sd, empty, Checkpoint(every_n_steps=1), max_steps=4))
    folder = empty / "checkpoints"
    for number, message in ((2, first), (3, second)):
        assert f"could not save '{folder / f'000000{number}.ckpt'}' (File too large)" in message
        assert f"'{folder / '0000001.ckpt'}' is as it was. The training goes on" in message
    assert names(empty) == ["0000004.ckpt", "last.ckpt"]
    assert same(load(folder / "last.ckpt")["state_dict"],
                load(run / "checkpoints/0000004.ckpt")["state_dict"])  # fmt: skip


def test_a_first_save_that_fails_leaves_nothing_to_continue_from(
    command: list[str], no_room: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    no_room(1, 2, 3)
    message = refused(command, capsys)
    assert "0000003.ckpt' (File too large); there is no earlier one." in message
    assert "Make room, then begin again." in message


def test_a_final_save_that_fails_is_an_error(
    command: list[str], empty: Path, no_room: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    no_room(3)
    message = refused(command, capsys)
    assert "--trainer.default_root_dir: could not save " in message
    assert "0000003.ckpt' (File too large); " in message
    assert "0000002.ckpt' is as it was. Make room, then continue from there with --ckpt" in message
    assert set(names(empty)) - {"good.ckpt"} == {"0000002.ckpt", "last.ckpt"}
    assert newest_path(empty / "checkpoints") == (empty / "checkpoints/last.ckpt", [])
    no_room()
    main([*command, "--ckpt_path=last"])
    assert load(empty / "checkpoints/last.ckpt")["global_step"] == 3


def save_slowly(small_sd: str, root: Path) -> None:
    """Be a run that takes a minute to save iteration 4."""
    write = torch.save

    def save(found: dict[str, Any], file: Any) -> None:
        write(found, file)
        if found["global_step"] == 4:
            file.flush()
            time.sleep(60)

    torch.save = save
    fit(small_sd, root, Checkpoint(every_n_steps=2))


def test_a_process_that_is_killed_while_saving_leaves_the_checkpoint_before(
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
    assert names(empty) == ["0000006.ckpt", "last.ckpt"]  # what was half written is gone
    assert (empty / "metrics.csv").read_bytes() == (run / "metrics.csv").read_bytes()
    assert same(load(folder / "last.ckpt")["state_dict"],
                load(run / "checkpoints/last.ckpt")["state_dict"])  # fmt: skip


# ---------------------------------------------------------------------- which are kept


class Scored(Metrics):
    """Has known scores."""

    def __init__(self, **scores: float) -> None:
        super().__init__()
        self.protocol: Any = "known"
        self.scores = {int(name[1:]): value for name, value in scores.items()}

    def setup(self, *_: Any, **__: Any) -> None:
        pass

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step in self.scores and trainer.global_step < trainer.max_steps:
            self.latest = {"fid": self.scores[trainer.global_step], "clip": 1.0}

    def on_trained(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step in self.scores:
            self.latest = {"fid": self.scores[trainer.global_step], "clip": 1.0}


def best_of(root: Path) -> tuple[int, float]:
    found = json.loads((root / "checkpoints/best.json").read_text())
    step = load(root / "checkpoints/best.ckpt")["global_step"]
    assert found["step"] == step
    return step, found["value"]


def test_the_best_is_kept_beside_the_last(small_sd: str, empty: Path) -> None:
    scores = Scored(s1=5.0, s2=float("nan"), s3=4.0, s4=4.5)
    options: dict[str, Any] = {"every_n_steps": 2, "keep": 2, "best": "fid"}
    fit(small_sd, empty, Checkpoint(**options), scores, max_steps=5)
    assert best_of(empty) == (3, 4.0)
    assert names(empty) == ["0000004.ckpt", "0000005.ckpt", "best.ckpt", "best.json", "last.ckpt"]
    assert load(empty / "checkpoints/last.ckpt")["callbacks"]["Checkpoint"]["best"] == {
        "metric": "fid", "value": 4.0, "step": 3,
    }  # fmt: skip

    # A continued run remembers what it has seen; the final scores count too.
    worse = Scored(s6=4.1, s7=3.0)
    fit(small_sd, empty, Checkpoint(**options), worse, max_steps=7, ckpt_path="last")
    assert best_of(empty) == (7, 3.0)
    assert names(empty) == ["0000006.ckpt", "0000007.ckpt", "best.ckpt", "best.json", "last.ckpt"]

    # They came after the last checkpoint, which does not know of them.
    fit(small_sd, empty, Checkpoint(**options), Scored(s8=3.5), max_steps=9, ckpt_path="last")
    assert best_of(empty) == (7, 3.0)
    largest = Checkpoint(**options | {"best_mode": "max"})
    fit(small_sd, empty, largest, Scored(s10=2.0), max_steps=11, ckpt_path="last")
    assert best_of(empty) == (7, 3.0)


def test_a_best_that_could_not_be_saved_is_not_the_best(
    small_sd: str, empty: Path, no_room: Callable[..., None]
) -> None:
    no_room(2)
    scores = Scored(s1=5.0, s2=3.0, s3=4.0)
    assert (
        len(warned(lambda: fit(small_sd, empty, Checkpoint(best="fid"), scores, max_steps=4))) == 1
    )
    assert best_of(empty) == (3, 4.0)


def test_an_unknown_metric_is_said_once_with_those_there_are(small_sd: str, empty: Path) -> None:
    scores, checkpoint = Scored(s1=5.0, s2=4.0), Checkpoint(best="fdi")
    (message,) = warned(lambda: fit(small_sd, empty, checkpoint, scores, max_steps=3))
    assert "no metric 'fdi', and no best.ckpt is kept. Choose one of clip, fid." in message
    assert names(empty) == ["0000003.ckpt", "last.ckpt"]


def test_a_best_that_nobody_measures_is_refused(small_sd: str, empty: Path) -> None:
    for callbacks in ([], [Metrics()]):
        with pytest.raises(UsageError, match=r"--checkpoint.best: 'fid' is never measured"):
            fit(small_sd, empty, Checkpoint(best="fid"), *callbacks)
    with pytest.raises(UsageError, match="--checkpoint.best_mode must be min or max, got 'mean'"):
        Checkpoint(best="fid", best_mode="mean")  # type: ignore[arg-type]


def test_options_may_change_when_a_run_is_continued(small_sd: str, copied: Path) -> None:
    """And what earlier options have kept is deleted in time."""
    checkpoint = Checkpoint(every_n_steps=1, keep=2)
    assert warned(lambda: fit(small_sd, copied, checkpoint, max_steps=8, ckpt_path="last")) == []
    assert names(copied) == ["0000007.ckpt", "0000008.ckpt", "last.ckpt"]
    fit(small_sd, copied, Checkpoint(keep=0), max_steps=9, ckpt_path="last")
    assert names(copied) == ["last.ckpt"]
    assert not (copied / "checkpoints/last.ckpt").is_symlink()


def test_what_is_named_to_continue_from_stays(small_sd: str, copied: Path) -> None:
    path = str(copied / "checkpoints/0000002.ckpt")
    fit(small_sd, copied, Checkpoint(every_n_steps=2), ckpt_path=path)
    assert names(copied) == ["0000002.ckpt", "0000006.ckpt", "last.ckpt"]
