"""Continued runs, and the checkpoints that are kept."""

import csv
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest

from sid_lsg.callbacks import Checkpoint, Metrics, Progress, Throughput
from sid_lsg.checkpoints.io import SafeCheckpointIO
from sid_lsg.messages.errors import UsageError
from tests.helpers.checkpoint_runs import STEPS, Iterations, fit, load, names, steps, warned
from tests.helpers.comparison import same

# ---------------------------------------------------------------------- continue


@pytest.mark.slow
@pytest.mark.parametrize("step", [2, 4])
def test_a_continued_run_equals_an_uninterrupted_one(
    small_sd: str, run: Path, copied: Path, step: int
) -> None:
    """Continue as if the run was killed just after it saved the checkpoint of `step`."""
    folder = copied / "checkpoints"
    for path in folder.iterdir():
        if path.name != f"{step:07d}.ckpt":
            path.unlink()
    iterations, progress = Iterations(), Progress(refresh_rate=1)
    checkpoint = Checkpoint(every_n_steps=2, keep=-1)
    written = (folder / f"{step:07d}.ckpt").stat()
    fit(small_sd, copied, checkpoint, iterations, progress, ckpt_path="last")
    assert iterations.ran == list(range(step, STEPS))
    # not saved again
    assert (folder / f"{step:07d}.ckpt").stat().st_mtime_ns == written.st_mtime_ns
    assert progress.train_progress_bar.n == STEPS
    assert (copied / "metrics.csv").read_bytes() == (run / "metrics.csv").read_bytes()
    for name in ("0000004.ckpt", "last.ckpt"):
        mine, whole = (load(root / "checkpoints" / name) for root in (copied, run))
        mine["callbacks"].pop(progress.state_key, None)
        differing = [key for key in whole if not same(mine[key], whole[key])]
        assert differing == []


@pytest.mark.parametrize(("step", "saved"), [(STEPS, []), (4, ["0000004.ckpt"])])
@pytest.mark.slow
def test_a_run_continued_in_another_directory_saves_its_checkpoints_there(
    small_sd: str, run: Path, empty: Path, step: int, saved: list[str]
) -> None:
    """A complete run has nothing left to train; its last checkpoint is still saved there."""
    source, checkpoint = run / f"checkpoints/{step:07d}.ckpt", Checkpoint(every_n_steps=4, keep=-1)
    if step == STEPS:
        source = run / "checkpoints/last.ckpt"
    fit(small_sd, empty, checkpoint, ckpt_path=str(source))
    assert names(empty) == [*saved, f"{STEPS:07d}.ckpt", "last.ckpt"]
    weights = [load(root / "checkpoints/last.ckpt")["state_dict"] for root in (run, empty)]
    assert same(*weights)


def test_the_row_of_a_repeated_iteration_is_replaced(small_sd: str, copied: Path) -> None:
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


def test_a_checkpoint_has_the_counters_of_its_iteration(run: Path) -> None:
    for step in (2, 4):
        saved = load(run / f"checkpoints/{step:07d}.ckpt")
        assert saved["global_step"] == step
        progress = saved["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        counts = {"ready": step, "started": step, "processed": step, "completed": step}
        assert progress == {"total": counts, "current": counts, "is_last_batch": False}


@pytest.mark.slow
def test_the_row_of_an_iteration_is_written_before_its_checkpoint(
    small_sd: str, empty: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    class Watching(SafeCheckpointIO):
        def save_checkpoint(self, checkpoint: Any, path: Any, storage_options: Any = None) -> None:
            seen.append((checkpoint["global_step"], steps(empty)))
            if checkpoint["global_step"] == 2:
                # with the rows of `Late`
                assert (empty / "metrics.csv").read_text().count(",1.0,") == 3
            super().save_checkpoint(checkpoint, path)

    class Late(L.Callback):
        def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
            trainer.logger.log_metrics({"late": 1.0}, trainer.global_step)

    monkeypatch.setattr("sid_lsg.callbacks.checkpoint.SafeCheckpointIO", Watching)
    fit(small_sd, empty, Checkpoint(every_n_steps=2, keep=2), Late(), max_steps=3)
    assert seen == [(2, [0, 1, 2]), (3, [0, 1, 2, 3])]
    loops = load(empty / "checkpoints/0000002.ckpt")["loops"]["fit_loop"]
    assert not loops["epoch_loop.batch_progress"]["is_last_batch"]  # only the third batch is


@pytest.mark.slow
def test_throughput_excludes_the_time_of_saving(
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


# ---------------------------------------------------------------------- retention


class Scored(Metrics):
    """Log known scores."""

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


@pytest.mark.slow
@pytest.mark.usefixtures("slow_writes")
def test_the_best_checkpoint_is_kept_beside_the_last(small_sd: str, empty: Path) -> None:
    scores = Scored(s1=5.0, s2=float("nan"), s3=4.0, s4=4.5)
    options: dict[str, Any] = {"every_n_steps": 2, "keep": 2, "best": "fid"}
    fit(small_sd, empty, Checkpoint(**options), scores, max_steps=5)
    assert best_of(empty) == (3, 4.0)
    assert names(empty) == ["0000004.ckpt", "0000005.ckpt", "best.ckpt", "best.json", "last.ckpt"]
    assert load(empty / "checkpoints/last.ckpt")["callbacks"]["Checkpoint"]["best"] == {
        "metric": "fid", "value": 4.0, "step": 3,
    }  # fmt: skip

    # A continued run knows the earlier scores. The final scores count too.
    worse = Scored(s6=4.1, s7=3.0)
    fit(small_sd, empty, Checkpoint(**options), worse, max_steps=7, ckpt_path="last")
    assert best_of(empty) == (7, 3.0)
    assert names(empty) == ["0000006.ckpt", "0000007.ckpt", "best.ckpt", "best.json", "last.ckpt"]

    # The final scores came after the last checkpoint, which does not contain them.
    fit(small_sd, empty, Checkpoint(**options), Scored(s8=3.5), max_steps=9, ckpt_path="last")
    assert best_of(empty) == (7, 3.0)
    largest = Checkpoint(**options | {"best_mode": "max"})
    fit(small_sd, empty, largest, Scored(s10=2.0), max_steps=11, ckpt_path="last")
    assert best_of(empty) == (7, 3.0)


def test_a_best_checkpoint_that_could_not_be_saved_does_not_count(
    small_sd: str, empty: Path, no_room: Callable[..., None]
) -> None:
    no_room(2)
    scores = Scored(s1=5.0, s2=3.0, s3=4.0)
    assert (
        len(warned(lambda: fit(small_sd, empty, Checkpoint(best="fid"), scores, max_steps=4))) == 1
    )
    assert best_of(empty) == (3, 4.0)


def test_an_unknown_metric_warns_once_and_lists_the_known_ones(small_sd: str, empty: Path) -> None:
    scores, checkpoint = Scored(s1=5.0, s2=4.0), Checkpoint(best="fdi")
    (message,) = warned(lambda: fit(small_sd, empty, checkpoint, scores, max_steps=3))
    assert "no metric 'fdi', so no best.ckpt is kept. Choose one of clip, fid." in message
    assert names(empty) == ["0000003.ckpt", "last.ckpt"]


def test_a_best_metric_that_is_never_measured_is_rejected(small_sd: str, empty: Path) -> None:
    for callbacks in ([], [Metrics()]):
        with pytest.raises(UsageError, match=r"--checkpoint.best: 'fid' is never computed"):
            fit(small_sd, empty, Checkpoint(best="fid"), *callbacks)
    with pytest.raises(UsageError, match="--checkpoint.best_mode must be min or max, got 'mean'"):
        Checkpoint(best="fid", best_mode="mean")  # type: ignore[arg-type]


@pytest.mark.slow
def test_checkpoint_options_may_change_in_a_continued_run(small_sd: str, copied: Path) -> None:
    """Checkpoints that the earlier options kept are deleted on schedule."""
    checkpoint = Checkpoint(every_n_steps=1, keep=2)
    assert warned(lambda: fit(small_sd, copied, checkpoint, max_steps=8, ckpt_path="last")) == []
    assert names(copied) == ["0000007.ckpt", "0000008.ckpt", "last.ckpt"]
    fit(small_sd, copied, Checkpoint(keep=0), max_steps=9, ckpt_path="last")
    assert names(copied) == ["last.ckpt"]
    assert not (copied / "checkpoints/last.ckpt").is_symlink()


def test_the_checkpoint_named_by_ckpt_path_is_kept(small_sd: str, copied: Path) -> None:
    path = str(copied / "checkpoints/0000002.ckpt")
    fit(small_sd, copied, Checkpoint(every_n_steps=2), ckpt_path=path)
    assert names(copied) == ["0000002.ckpt", "0000006.ckpt", "last.ckpt"]
