"""Logging to a CSV file, Weights & Biases and TensorBoard."""

import csv
import errno
import json
import os
import pty
import re
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import wandb
import yaml
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image

import sid_lsg.loggers.wandb_logger as wandb_logger
from sid_lsg.cli import main
from sid_lsg.loggers import CSVLogger, WandbLogger, log_images, log_table
from sid_lsg.messages.errors import UsageError
from tests.helpers.paths import REPOSITORY
from tests.helpers.wandb_files import records

# ---------------------------------------------------------------------- CSV


def rows(folder: Path) -> list[tuple[int, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return [(int(row["step"]), row["loss"]) for row in csv.DictReader(file)]


def log(folder: Path, *steps: int, value: str) -> None:
    logger = CSVLogger(str(folder))
    for step in steps:
        logger.log_metrics({"loss": value}, step=step)  # type: ignore[dict-item]
    logger.save()


def test_a_continued_run_has_one_row_for_each_step(tmp_path: Path) -> None:
    log(tmp_path, 10, 20, 30, value="first")
    log(tmp_path, 20, 30, 40, value="second")  # for example from a checkpoint of step 15
    assert rows(tmp_path) == [(10, "first"), (20, "second"), (30, "second"), (40, "second")]


def test_everything_logged_at_one_step_is_one_row(tmp_path: Path) -> None:
    """Scores and losses of a step are logged separately; Lightning would flush at step 99."""
    logger = CSVLogger(str(tmp_path))
    for step in (98, 99, 100):
        logger.log_metrics({"fid": step / 2}, step=step)
        logger.log_metrics({"loss": step}, step=step)
        path = tmp_path / "metrics.csv"
        written = list(csv.DictReader(path.read_text().splitlines())) if path.exists() else []
        assert len(written) == step - 98  # complete rows are on the disk
    logger.save()
    logger.log_metrics({"fid": 1, "kid": 2}, step=100)  # final scores, after a save
    logger.save()
    with (tmp_path / "metrics.csv").open() as file:
        found = [(row["step"], row["fid"], row["loss"], row["kid"]) for row in csv.DictReader(file)]
    assert found == [("98", "49.0", "98", ""), ("99", "49.5", "99", ""), ("100", "1", "100", "2")]


def test_opening_a_log_keeps_its_rows(tmp_path: Path) -> None:
    log(tmp_path, 10, 20, value="first")
    before = rows(tmp_path)
    logger = CSVLogger(str(tmp_path))
    assert logger.experiment is logger  # Lightning's writer would delete the file here
    assert rows(tmp_path) == before
    logger.save()
    assert rows(tmp_path) == before


def test_new_columns_are_added_to_old_rows(tmp_path: Path) -> None:
    log(tmp_path, 10, value="first")
    logger = CSVLogger(str(tmp_path))
    logger.log_metrics({"loss": 1.0, "other": 2.0}, step=20)
    logger.save()
    with (tmp_path / "metrics.csv").open(newline="") as file:
        first, second = csv.DictReader(file)
    assert (first["other"], second["other"]) == ("", "2.0")


def test_final_scores_join_the_last_row_of_a_finished_run(tmp_path: Path) -> None:
    """A run that was killed in the final comparison only repeats the comparison."""
    log(tmp_path, 1, 2, value="a")
    logger = CSVLogger(str(tmp_path))
    logger.log_metrics({"fid": 1.0}, step=2)
    logger.finalize("success")
    with (tmp_path / "metrics.csv").open(newline="") as file:
        found = [(row["step"], row["loss"], row["fid"]) for row in csv.DictReader(file)]
    assert found == [("1", "a", ""), ("2", "a", "1.0")]


def test_a_repeated_row_keeps_nothing_of_the_old_one(tmp_path: Path) -> None:
    """The run resumes from iteration 2, and the repeated rows do not get the old scores."""
    logger = CSVLogger(str(tmp_path))
    for step in (1, 2, 3, 4):
        logger.log_metrics({"loss": 1.0, "fid": step}, step=step)
    logger.save()
    again = CSVLogger(str(tmp_path))
    again.continue_from(2)
    for step in (3, 4):
        again.log_metrics({"loss": 2.0}, step=step)
    again.save()
    with (tmp_path / "metrics.csv").open(newline="") as file:
        found = [(row["step"], row["loss"], row["fid"]) for row in csv.DictReader(file)]
    assert found == [("1", "1.0", "1"), ("2", "1.0", "2"), ("3", "2.0", ""), ("4", "2.0", "")]


@pytest.mark.parametrize("lost", [1, 2, 3, 5, 6, 8, 14])
def test_a_truncated_row_is_dropped(tmp_path: Path, lost: int) -> None:
    """The remaining digits of a truncated row may look like a whole number."""
    log(tmp_path, 10, 11, value="1.25")
    path = tmp_path / "metrics.csv"
    text = path.read_bytes()
    assert text.endswith(b"1.25,11\r\n")
    path.write_bytes(text[:-lost])
    log(tmp_path, 12, value="new")
    assert rows(tmp_path) == [*([(10, "1.25")] if lost < 10 else []), (12, "new")]


@pytest.mark.parametrize("text", ["", "loss,st", "loss,step\r\n", "\0\0\0", "loss,step\r\n\0\0\n"])
def test_a_file_without_a_complete_row_is_started_anew(tmp_path: Path, text: str) -> None:
    (tmp_path / "metrics.csv").write_text(text, newline="")
    log(tmp_path, 1, 2, value="a")
    assert rows(tmp_path) == [(1, "a"), (2, "a")]


def test_most_rows_are_appended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a long log would be rewritten thousands of times."""
    rewritten: list[int] = []
    rewrite = CSVLogger._rewrite
    monkeypatch.setattr(
        CSVLogger,
        "_rewrite",
        lambda self, new: (rewritten.append(new[0]["step"]), rewrite(self, new)),
    )
    logger = CSVLogger(str(tmp_path))
    for step in range(1, 31):
        logger.log_metrics({"loss": step} if step < 20 else {"loss": step, "fid": 1.0}, step)
        logger.save()
        logger.save()
    assert rewritten == [1, 20]
    assert rows(tmp_path) == [(step, str(step)) for step in range(1, 31)]


@pytest.mark.parametrize("column", ["loss", "new"])
def test_a_full_disk_loses_no_earlier_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, column: str
) -> None:
    """Neither appending a row nor rewriting the file loses earlier rows."""
    logger = CSVLogger(str(tmp_path))
    logger.log_metrics({"loss": "a"}, 1)
    logger.log_metrics({"loss": "a"}, 2)
    logger.save()
    opened = Path.open

    def full(path: Path, mode: str = "r", *rest: Any, **options: Any) -> Any:
        if mode[0] == "r":
            return opened(path, mode, *rest, **options)
        with opened(path, mode, *rest, **options) as file:
            file.write(b"7," if "b" in mode else "7,")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "open", full)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in (3, 4):
            logger.log_metrics({"loss": "b", column: "b"}, step)
            logger.save()
            logger.save()
    (warning,) = caught
    assert re.search(r"--trainer\.default_root_dir.*No space left", str(warning.message))
    assert "No space left" in logger.unwritten  # so no checkpoint is saved without its rows
    with pytest.raises(UsageError, match="No space left"):
        logger.finalize("success")
    monkeypatch.undo()
    assert rows(tmp_path)[:2] == [(1, "a"), (2, "a")]
    logger.log_metrics({"loss": "c"}, 5)  # the disk has space again
    logger.save()
    assert logger.unwritten == ""
    assert rows(tmp_path) == [(1, "a"), (2, "a"), (3, "b"), (4, "b"), (5, "c")]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]


def test_leftovers_of_a_killed_process_are_deleted(tmp_path: Path) -> None:
    (tmp_path / ".metrics.csv.123.tmp").write_text("loss,st")
    log(tmp_path, 1, value="a")
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]


def test_the_configuration_is_not_written_again(tmp_path: Path) -> None:
    logger = CSVLogger(str(tmp_path))
    logger.log_hyperparams({"a": 1})
    logger.log_metrics({"loss": 1.0}, step=1)
    logger.save()
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]


# ---------------------------------------------------------------------- W&B: content of a run


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Remove W&B's settings and key, and make wandb read the environment again."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    for name in ("CACHE", "CONFIG", "DATA", "ARTIFACT"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / "wandb-own"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.chdir(tmp_path)
    wandb.finish()
    wandb.teardown()
    yield
    wandb.finish()
    wandb.teardown()


def history(folder: Path) -> list[dict[str, Any]]:
    """Read the rows of an offline run."""
    rows = []
    for record in records(folder):
        if record.WhichOneof("record_type") != "history":
            continue
        row: dict[str, Any] = {}
        for item in record.history.item:
            inner = row
            *outer, last = item.nested_key or [item.key]
            for name in outer:
                inner = inner.setdefault(name, {})
            inner[last] = json.loads(item.value_json)
        rows.append(row)
    return rows


def test_name_tags_and_notes_come_from_the_options(fresh: None, tmp_path: Path) -> None:
    options = {"tags": ["a", "b"], "group": "g", "notes": "why", "save_dir": "runs/x"}
    logger = WandbLogger(**options, project="p", offline=True)  # type: ignore[arg-type]
    run = logger.experiment
    assert (run.name, run.tags, run.group, run.notes) == ("x", ("a", "b"), "g", "why")
    assert run.project == "p"
    assert Path(run.dir).is_relative_to("runs/x/wandb")
    wandb.finish()
    run = WandbLogger(name="mine", save_dir="runs/x", offline=True).experiment
    assert (run.name, run.project) == ("mine", "sid-lsg")


def test_every_row_states_the_images_seen(fresh: None, tmp_path: Path) -> None:
    logger = WandbLogger(offline=True)
    logger.log_hyperparams({"data": {"batch_size": 4}, "kappa_1": 1.5})
    logger.log_metrics({"score": 1.0}, step=0)
    logger.log_metrics({"score": 2.0}, step=3)
    logger.log_metrics({"loss": 1.0, "images_seen": 40.0}, step=10)
    log_images([logger], "grid", [Image.new("RGB", (4, 4))], None, step=20)
    log_table([logger], "table", ["a"], [[1]], step=30)
    assert logger.experiment.config["data"] == {"batch_size": 4}
    wandb.finish()
    seen = [(row["images_seen"], row["trainer/global_step"]) for row in history(tmp_path)]
    assert seen == [(0, 0), (12, 3), (40, 10), (80, 20), (120, 30)]
    axes = [r.metric for r in records(tmp_path) if r.WhichOneof("record_type") == "metric"]
    everything = [metric for metric in axes if metric.glob_name == "*"]
    assert [metric.step_metric for metric in everything] == ["images_seen"]


def test_without_a_configuration_the_images_seen_follow_from_the_rows(
    fresh: None, tmp_path: Path
) -> None:
    logger = WandbLogger(offline=True)
    logger.log_metrics({"loss": 1.0, "images_seen": 20.0}, step=10)
    logger.log_metrics({"score": 1.0}, step=15)
    wandb.finish()
    assert [row["images_seen"] for row in history(tmp_path)] == [20, 30]


def test_wandb_reads_its_environment_unchanged(
    fresh: None, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("WANDB_DATA_DIR")
    monkeypatch.delenv("WANDB_SILENT")
    monkeypatch.setenv("WANDB_MODE", "offline")
    WandbLogger().log_metrics({"loss": 1.0}, step=1)
    wandb.finish()
    said = capfd.readouterr().err
    assert "offline" in said
    assert "environment variables will be ignored" not in said


def test_images_and_tables_in_wandb(
    fresh: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_DATA_DIR")
    logger = WandbLogger(offline=True)
    red, blue = (Image.new("RGB", (4, 4), color) for color in ("red", "blue"))
    log_images([logger, CSVLogger()], "grid", [red, blue], ["a red cat", "the sea"], step=0)
    log_table([logger, CSVLogger()], "best", ["prompt", "image"], [["x", red]], step=0)
    wandb.finish()
    grid, table = history(tmp_path)
    assert grid["grid"]["captions"] == ["a red cat", "the sea"]
    (media,) = tmp_path.glob("wandb/offline-run-*/files/media")
    colors = []
    for name in grid["grid"]["filenames"]:
        with Image.open(media.parent / name) as image:
            colors.append(image.convert("RGB").getpixel((0, 0)))
    assert colors == [(255, 0, 0), (0, 0, 255)]
    assert (table["best"]["ncols"], table["best"]["nrows"]) == (2, 1)
    (artifact,) = [
        r.artifact for r in records(tmp_path) if r.WhichOneof("record_type") == "artifact"
    ]
    stored = {Path(entry.path).suffix: entry for entry in artifact.manifest.contents}
    content = json.loads(Path(stored[".json"].local_path).read_text())
    assert content["columns"] == ["prompt", "image"]
    assert content["data"][0][0] == "x"
    assert content["data"][0][1]["path"] == stored[".png"].path
    for entry in stored.values():  # relative to the run, which may be sent from another machine
        assert Path(entry.local_path).is_relative_to(tmp_path / "wandb")
    assert not list(tmp_path.glob("metrics.csv"))


# ---------------------------------------------------------------------- W&B: online or offline


class Refuses(BaseHTTPRequestHandler):
    """A server that answers every request with 401."""

    def answer(self) -> None:
        self.rfile.read(int(self.headers.get("content-length") or 0))
        self.send_response(401)
        self.end_headers()

    do_GET = do_POST = do_HEAD = answer

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Refuses) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{served.server_port}"
        served.shutdown()


@pytest.fixture
def silent() -> Iterator[str]:
    """A server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def test_a_server_has_little_time_to_answer(server: str, silent: str) -> None:
    assert wandb_logger._answers(server, 5.0)
    assert not wandb_logger._answers(silent, 0.2)
    assert not wandb_logger._answers("http://127.0.0.1:9", 5.0)
    assert not wandb_logger._answers("http://nowhere.invalid", 5.0)


def test_a_hanging_name_server_does_not_block(monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **options: released.wait(60) and [])
    start = time.monotonic()
    assert not wandb_logger._answers("http://nowhere.invalid", 0.2)
    assert time.monotonic() - start < 30
    released.set()


@pytest.mark.parametrize("case", ["no key", "no server", "silent server", "refused key", "bad key"])
@pytest.mark.slow
def test_without_key_or_server_the_run_goes_offline(
    fresh: None,
    server: str,
    silent: str,
    case: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One warning states the reason and how to send the run."""
    key = {"no key": None, "bad key": "short"}.get(case, "0123456789" * 4)
    url = {"no server": "http://127.0.0.1:9", "silent server": silent}.get(case, server)
    monkeypatch.setenv("WANDB_BASE_URL", url)
    monkeypatch.setattr(wandb_logger, "_PATIENCE", 1.0)
    if key:
        monkeypatch.setenv("WANDB_API_KEY", key)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run = WandbLogger(save_dir="runs/x").experiment
    assert run.settings.mode == "offline"
    messages = [str(w.message) for w in caught if "W&B" in str(w.message)]
    assert len(messages) == 1
    reason = {
        "no key": "No API key",
        "bad key": "WANDB_API_KEY",
        "refused key": "logs this run offline: ",
    }
    assert reason.get(case, "does not answer") in messages[0]
    (folder,) = (tmp_path / "runs/x/wandb").glob("offline-run-*")
    assert f"`wandb sync {folder}`" in messages[0].replace(" runs/", f" {tmp_path}/runs/")


def test_an_explicit_mode_is_not_replaced(
    fresh: None, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", server)
    monkeypatch.setenv("WANDB_MODE", "online")
    with pytest.raises(UsageError, match=r"WANDB_MODE is 'online'.*No API key.*`wandb login`"):
        assert WandbLogger().experiment
    monkeypatch.setenv("WANDB_MODE", "disabled")
    wandb.teardown()
    assert WandbLogger().experiment.disabled
    wandb.finish()
    monkeypatch.setenv("WANDB_MODE", "sometimes")
    wandb.teardown()
    with pytest.raises(UsageError, match=r"WANDB_MODE.*'online', 'offline'.*Correct"):
        assert WandbLogger().experiment


def test_offline_mode_contacts_no_server(fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(*args: Any) -> bool:
        raise AssertionError

    monkeypatch.setattr(wandb_logger, "_answers", ask)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert WandbLogger(offline=True).experiment.settings.mode == "offline"
        wandb.finish()
        monkeypatch.setenv("WANDB_MODE", "offline")
        wandb.teardown()
        assert WandbLogger().experiment.settings.mode == "offline"


@pytest.mark.slow
def test_no_key_is_requested_in_a_terminal(fresh: None, server: str, tmp_path: Path) -> None:
    """The server answers but there is no key: wandb itself would ask and wait."""
    script = (
        "from sid_lsg.loggers import WandbLogger\n"
        "import sys; assert sys.stdin.isatty() and sys.stderr.isatty()\n"
        "logger = WandbLogger(); logger.log_metrics({'a': 1.0}, 1)\n"
        "assert sys.stdin.isatty(); print('continues', logger.experiment.settings.mode)\n"
    )
    environment = os.environ | {"TERM": "xterm", "PYTHONPATH": str(REPOSITORY)}
    environment |= {"WANDB_BASE_URL": server, "WANDB_SILENT": "false"}
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=theirs, stdout=theirs, stderr=theirs, env=environment, start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    timer = threading.Timer(120, process.kill)
    timer.start()
    shown = b""
    with suppress(OSError):  # raised at the end of a pseudo-terminal
        while part := os.read(ours, 4096):
            shown += part
            if b"Enter your choice" in shown:
                process.kill()
    timer.cancel()
    os.close(ours)
    text = shown.decode(errors="replace")
    assert process.wait(10) == 0, text
    assert "continues offline" in text
    assert "your choice" not in text
    assert "No API key" in text


class Starts(list[dict[str, Any]]):
    """Record the options with which W&B runs are started."""

    def __call__(self, **options: Any) -> Any:
        self.append(options)
        return SimpleNamespace(define_metric=lambda *a, **o: None, dir=".", finish=lambda: None)


def start_options(monkeypatch: pytest.MonkeyPatch, logger: WandbLogger) -> dict[str, Any]:
    calls = Starts()
    monkeypatch.setattr(wandb, "init", calls)
    monkeypatch.setattr(wandb_logger, "_answers", lambda *args: True)
    assert logger.experiment is not None
    return calls[0]


def test_a_continued_run_directory_continues_its_wandb_run(
    fresh: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "x" / "wandb" / "run-20250101_000000-abc-12"
    folder.mkdir(parents=True)
    (tmp_path / "x/wandb/latest-run").symlink_to(folder.name)
    logger: dict[str, Any] = {"save_dir": str(tmp_path / "x")}
    # Another program may have made the folder.
    assert start_options(monkeypatch, WandbLogger(**logger))["id"] is None
    (tmp_path / "x/config.yaml").touch()
    options = start_options(monkeypatch, WandbLogger(**logger))
    assert (options["id"], options["resume"], options["mode"]) == ("abc-12", "allow", "online")
    assert start_options(monkeypatch, WandbLogger(**logger, id="own"))["id"] == "own"
    options = start_options(monkeypatch, WandbLogger(**logger, offline=True))
    assert (options["id"], options["resume"]) == (None, None)
    (tmp_path / "x/wandb/latest-run").unlink()
    (tmp_path / "x/wandb/latest-run").symlink_to("offline-run-20250101_000000-abc")
    assert start_options(monkeypatch, WandbLogger(**logger))["id"] is None


def test_a_sweep_names_its_runs(fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_SWEEP_ID", "s")
    monkeypatch.setenv("WANDB_RUN_ID", "r")
    options = start_options(monkeypatch, WandbLogger(tags=["t"], id="mine", entity="me"))
    named = {name: options[name] for name in ("project", "entity", "id", "name", "tags")}
    assert named == {"project": None, "entity": None, "id": None, "name": None, "tags": ["t"]}


# ---------------------------------------------------------------------- TensorBoard


def accumulated(folder: Path) -> Any:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(folder), size_guidance={"images": 0, "tensors": 0}).Reload()


def decoded(event: Any) -> np.ndarray:
    from io import BytesIO

    return np.asarray(Image.open(BytesIO(event.encoded_image_string)).convert("RGB"))


def test_images_and_tables_in_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    logger = TensorBoardLogger(str(tmp_path), name="", version="")
    red, blue = (Image.new("RGB", (4, 4), color) for color in ("red", "blue"))
    large = Image.new("RGB", (8, 8), "green")
    log_images([logger, CSVLogger()], "one", [red], ["a"], step=3)
    log_images([logger], "alike", [red, blue], ["a", "b"], step=3)
    log_images([logger], "unlike", [red, large], None, step=3)
    log_images([logger], "whole", [red, blue], ["a", "b"], step=5, whole=large)
    log_table([logger], "table", ["a|b", "image", "c"], [["x\ny", red, 0.123456]], step=7)
    logger.finalize("success")
    found = accumulated(tmp_path)
    assert set(found.Tags()["images"]) == {"one", "alike", "unlike/0", "unlike/1", "whole"}
    (whole,) = found.Images("whole")
    assert whole.step == 5
    assert np.array_equal(decoded(whole), np.asarray(large))
    (one,) = found.Images("one")
    assert np.array_equal(decoded(one), np.asarray(red))
    (alike,) = found.Images("alike")
    assert {(255, 0, 0), (0, 0, 255)} <= {tuple(p) for p in decoded(alike).reshape(-1, 3)}
    (table,) = found.Tensors("table/text_summary")
    text = table.tensor_proto.string_val[0].decode()
    assert text.splitlines() == ["| a|b | c |", "| --- | --- |", "| x y | 0.1235 |"]
    assert table.step == 7


def run(small_sd: str, folder: Path, *options: str) -> None:
    """Run two iterations into folder/runs/x, through the command line."""
    (folder / "prompts.txt").write_text("a red cat\ntwo dogs\na blue bird\n")
    defaults = {
        "model.teacher": small_sd,
        "data.prompts": str(folder / "prompts.txt"),
        "data.batch_size": 2,
        "data.num_workers": 0,
        "trainer.accelerator": "cpu",
        "trainer.max_steps": 2,
        "trainer.log_every_n_steps": 1,
        "trainer.default_root_dir": "runs/x",
        "image_grid.every_n_steps": 1,
        "image_grid.num_images": 3,
        "progress.refresh_rate": 0,
    }
    main(["fit", *(f"--{name}={value}" for name, value in defaults.items()), *options])


@pytest.mark.slow
def test_a_run_in_tensorboard(
    small_sd: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run(small_sd, tmp_path, "--trainer.logger", "lightning.pytorch.loggers.TensorBoardLogger")
    assert {path.name for path in tmp_path.iterdir()} == {"prompts.txt", "runs"}
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"x"}
    found = accumulated(tmp_path / "runs/x")
    for name in ("loss_fake", "loss_generator", "images_per_s"):
        assert [event.step for event in found.Scalars(name)] == [1, 2]
    assert [event.value for event in found.Scalars("images_seen")] == [2, 4]
    grids = found.Images("grid")
    assert [event.step for event in grids] == [0, 1, 2]
    for event in grids:
        with Image.open(tmp_path / f"runs/x/grids/step-{event.step:07d}.png") as image:
            assert np.array_equal(decoded(event), np.asarray(image.convert("RGB")))
    content = found.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    values = HParamsPluginData.FromString(content).session_start_info.hparams
    assert [values[f"kappa_{i}"].number_value for i in (1, 2, 3, 4)] == [1.5] * 4
    assert values["model/alpha"].number_value == 1.0
    assert values["data/batch_size"].number_value == 2


@pytest.mark.slow
def test_several_loggers_at_once(
    fresh: None, small_sd: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All loggers write to the run directory; the stored configuration has relative folders."""
    loggers = [
        {"class_path": "sid_lsg.loggers.CSVLogger"},
        {
            "class_path": "sid_lsg.loggers.WandbLogger",
            "init_args": {"offline": True, "tags": ["t"]},
        },
        {
            "class_path": "lightning.pytorch.loggers.TensorBoardLogger",
            "init_args": {"save_dir": "tb", "name": "", "version": ""},
        },
    ]
    guidance = {"preset": "none", "train_fake": 1.0, "eval_fake": [2.0, 3.0], "eval_real": 4.0}
    config = {"trainer": {"logger": loggers}, "model": {"guidance": guidance}}
    (tmp_path / "several.yaml").write_text(yaml.safe_dump(config))
    run(small_sd, tmp_path, "--config", str(tmp_path / "several.yaml"))
    wandb.finish()
    root = tmp_path / "runs/x"
    written = {path.name for path in root.iterdir()}
    assert {"metrics.csv", "wandb", "tb", "config.yaml"} <= written
    assert "hparams.yaml" not in written
    assert accumulated(root / "tb").Scalars("loss_fake")[-1].step == 2
    table = history(root)
    assert [row["images_seen"] for row in table if "loss_fake" in row] == [2, 4]
    grids = [row for row in table if "grid" in row]
    assert [row["images_seen"] for row in grids] == [0, 2, 4]
    assert grids[0]["grid"]["captions"] == ["a red cat", "two dogs", "a blue bird"]
    updates = {
        item.key: json.loads(item.value_json)
        for r in records(root)
        for item in (*r.config.update, *r.run.config.update)
    }
    assert [updates[f"kappa_{i}"] for i in (1, 2, 3, 4)] == [1.0, 2.0, 3.0, 4.0]
    assert updates["model"]["guidance"]["eval_fake"] == [2.0, 3.0]
    assert updates["data"]["batch_size"] == 2

    saved = yaml.safe_load((root / "config.yaml").read_text())
    folders = [logger["init_args"]["save_dir"] for logger in saved["trainer"]["logger"]]
    assert folders == [".", ".", "tb"]
