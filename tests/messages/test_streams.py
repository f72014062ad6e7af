"""Output that cannot be written does not end a command."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sid_lsg.messages.streams import LastingStream
from tests.helpers.paths import REPOSITORY

HELP = [sys.executable, "-m", "sid_lsg", "--help"]


def closed_pipe() -> int:
    """Return the end of a pipe that nobody reads."""
    read, write = os.pipe()
    os.close(read)
    return write


def test_a_reader_that_leaves_is_no_error() -> None:
    pipe = closed_pipe()
    ended = subprocess.run(HELP, stdout=pipe, stderr=subprocess.PIPE, cwd=REPOSITORY, check=False)
    os.close(pipe)
    assert (ended.returncode, ended.stderr) == (0, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_output_that_is_lost_is_told_once() -> None:
    with open("/dev/full", "wb") as full:
        ended = subprocess.run(
            HELP, stdout=full, stderr=subprocess.PIPE, cwd=REPOSITORY, check=False, text=True
        )
    assert ended.returncode == 0
    assert ended.stderr == (
        "warning: the standard output cannot be written (No space left on device); the rest of it "
        "is lost.\n"
    )


def test_a_lost_stream_takes_everything() -> None:
    stream = LastingStream(os.fdopen(closed_pipe(), "w", buffering=1), "output")
    assert not stream.isatty()
    for _ in range(3):
        assert stream.write("a line\n") == 7
        print("another", file=stream, flush=True)
        stream.writelines(["x", "y\n"])
    stream.close()


def test_an_open_stream_is_written(tmp_path: Path) -> None:
    with (tmp_path / "out").open("w") as file:
        stream = LastingStream(file, "output")
        stream.write("a")
        stream.writelines(["b", "c"])
        stream.flush()
        assert (tmp_path / "out").read_text() == "abc"
        assert stream.fileno() == file.fileno()


@pytest.mark.slow
def test_a_run_whose_terminal_is_closed_ends_complete(small_sd: str, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a red cat\ntwo dogs\n")
    line = [
        *("fit", f"--model.teacher={small_sd}", "--data.prompts=prompts.txt"),
        *("--data.batch_size=1", "--data.num_workers=0", "--data.num_heldout=0"),
        *("--trainer.accelerator=cpu", "--trainer.max_steps=4", "--trainer.log_every_n_steps=1"),
        *("--trainer.default_root_dir=run", "--metrics.clip=null", "--image_grid.every_n_steps=0"),
    ]
    pipe = closed_pipe()
    ended = subprocess.run(
        [sys.executable, "-m", "sid_lsg", *line], stdout=pipe, stderr=pipe, cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}, check=False,
    )  # fmt: skip
    os.close(pipe)
    assert ended.returncode == 0
    assert (tmp_path / "run/summary.json").is_file()
    assert (tmp_path / "run/generator/model_index.json").is_file()
