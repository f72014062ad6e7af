"""Logging to Weights & Biases, online and offline."""

import os
import pty
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

import pytest
import wandb
from PIL import Image

import sid_lsg.loggers.wandb_logger as wandb_logger
from sid_lsg.loggers import WandbLogger, log_images, log_table
from sid_lsg.messages.errors import UsageError
from tests.helpers.paths import REPOSITORY
from tests.helpers.wandb_files import history, records


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


# ---------------------------------------------------------------------- online or offline


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
    logger: dict[str, Any] = {"save_dir": str(tmp_path / "x")}
    # Another program may have made the folder.
    assert start_options(monkeypatch, WandbLogger(**logger))["id"] is None
    (tmp_path / "x/config.yaml").touch()
    options = start_options(monkeypatch, WandbLogger(**logger))
    assert (options["id"], options["resume"], options["mode"]) == ("abc-12", "allow", "online")
    assert start_options(monkeypatch, WandbLogger(**logger, id="own"))["id"] == "own"
    options = start_options(monkeypatch, WandbLogger(**logger, offline=True))
    assert (options["id"], options["resume"]) == (None, None)
    offline = folder.with_name("offline-run-20250102_000000-def")  # W&B did not answer that day
    offline.mkdir()
    assert start_options(monkeypatch, WandbLogger(**logger))["id"] == "abc-12"
    folder.with_name("run-20250103_000000-ghi").mkdir()
    assert start_options(monkeypatch, WandbLogger(**logger))["id"] == "ghi"
    for path in folder.parent.glob("run-*"):
        path.rmdir()
    assert start_options(monkeypatch, WandbLogger(**logger))["id"] is None


def test_a_sweep_names_its_runs(fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_SWEEP_ID", "s")
    monkeypatch.setenv("WANDB_RUN_ID", "r")
    options = start_options(monkeypatch, WandbLogger(tags=["t"], id="mine", entity="me"))
    named = {name: options[name] for name in ("project", "entity", "id", "name", "tags")}
    assert named == {"project": None, "entity": None, "id": None, "name": None, "tags": ["t"]}
