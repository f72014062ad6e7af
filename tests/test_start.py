"""The modules that are imported before a command answers; they decide how long `--help` takes."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import sid_lsg
from sid_lsg.commands.table import COMMANDS, PROGRAM
from tests.helpers import forked
from tests.helpers.interpreter import interpreter
from tests.helpers.paths import REPOSITORY

HEAVY = {
    "accelerate", "bitsandbytes", "diffusers", "gradio", "lightning", "matplotlib", "numpy", "peft",
    "scipy", "torch", "torchmetrics", "transformers", "wandb",
}  # fmt: skip
ENTRIES = [
    ["-m", "sid_lsg"],
    ["-m", "sid_lsg.cli"],
    ["-c", "from sid_lsg.cli import start; start()"],
]
OF_FIT = ["estimate", "benchmark"]


def run(*command: str) -> tuple[subprocess.CompletedProcess[str], set[str]]:
    """Run Python; return the completed process and the heavy packages that it imported."""
    ended = subprocess.run(
        [sys.executable, "-X", "importtime", *command], capture_output=True, text=True, check=False
    )
    lines = ended.stderr.splitlines()
    imported = {line.rpartition("|")[2].strip() for line in lines if line.startswith("import time")}
    ended.stderr = "".join(f"{line}\n" for line in lines if not line.startswith("import time"))
    return ended, imported & HEAVY


@pytest.mark.parametrize("entry", ENTRIES, ids=["sid_lsg", "sid_lsg.cli", "sid-lsg"])
def test_help_lists_the_commands_and_imports_nothing_heavy(entry: list[str]) -> None:
    ended, imported = run(*entry, "--help")
    assert (ended.returncode, ended.stderr, imported) == (0, "", set())
    for name, command in COMMANDS.items():
        assert f"\n  {name} " in ended.stdout
        assert f" {command.summary}\n" in ended.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["zebra", "--x", "1"],
            "error: 'zebra' is not a command. The commands are fit, generate",
        ),
        ([], "error: a command is missing."),
        (["--model.alpha", "1"], "error: '--model.alpha' is not a command."),
        (["fit", "--config", "none.yaml"], "error: --config: cannot read 'none.yaml'"),
        (["generate", "--config=broken.yaml"], "error: --config: 'broken.yaml' is not valid YAML"),
        (["fit", "--config"], "error: --config needs a file"),
    ],
)
def test_these_mistakes_are_answered_without_heavy_imports(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    Path("broken.yaml").write_text("model: [")
    ended, imported = run("-m", "sid_lsg.cli", *arguments)
    assert (ended.returncode, ended.stdout, imported) == (2, "", set())
    assert ended.stderr.startswith(said)
    assert len(ended.stderr.splitlines()) == 1


def test_the_version_is_printed_without_heavy_imports() -> None:
    ended, imported = run("-m", "sid_lsg.cli", "--version")
    assert (ended.returncode, ended.stdout) == (0, f"sid-lsg {sid_lsg.__version__}\n")
    assert not imported


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "fit"])
@pytest.mark.slow
def test_help_of_a_command_that_does_not_train_imports_nothing_heavy(command: str) -> None:
    ended, imported = run("-m", "sid_lsg.cli", command, "--help")
    assert (ended.returncode, ended.stderr, imported) == (0, "", set())
    assert ended.stdout.startswith(f"usage: {PROGRAM} {command} ")
    pointer = f"All options of `fit` are accepted too: see `{PROGRAM} fit --help`."
    assert (pointer in " ".join(ended.stdout.split())) == (command in OF_FIT)


@pytest.mark.slow
def test_the_help_of_fit_imports_no_model_library() -> None:
    """Lightning itself imports torch, torchmetrics and, through that, transformers."""
    ended, imported = run("-m", "sid_lsg.cli", "fit", "--help")
    assert ended.returncode == 0
    assert "--model.teacher" in ended.stdout
    assert imported.isdisjoint({"gradio", "wandb"})


def test_the_package_imports_its_public_names_lazily() -> None:
    code = "import sid_lsg; print(sid_lsg.__all__, dir(sid_lsg))"
    ended, imported = run("-c", code)
    assert (ended.returncode, imported) == (0, set())
    for name in ("Guidance", "PromptDataModule", "SiDLSG"):
        assert ended.stdout.count(f"'{name}'") == 2
        assert getattr(sid_lsg, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'Zebra'"):
        _ = sid_lsg.Zebra


def with_python(executable: str, *arguments: Any) -> None:
    """Act as a program that starts further processes with an interpreter."""
    sys.executable = executable
    forked.program(*arguments)


@pytest.mark.slow
@pytest.mark.parametrize("entry", ENTRIES, ids=["sid_lsg", "sid_lsg.cli", "sid-lsg"])
def test_each_entry_point_launches_a_second_process(
    entry: list[str], small_sd: str, tmp_path: Path
) -> None:
    """One second process is a new Python. The libraries print no irrelevant messages."""
    python = sys.executable if entry[-1] == "sid_lsg.cli" else interpreter()
    if entry[0] == "-c":  # as pip installs the script
        (tmp_path / "sid-lsg").write_text(entry[1])
        entry = [str(tmp_path / "sid-lsg")]
    (tmp_path / "prompts.txt").write_text("a red cat\ntwo dogs\n")
    root = tmp_path / "run"
    line = [
        "fit", f"--model.teacher={small_sd}", f"--data.prompts={tmp_path / 'prompts.txt'}",
        "--data.batch_size=2", "--data.num_workers=0", "--trainer.accelerator=cpu",
        "--trainer.strategy=ddp_multi", "--trainer.devices=2", "--trainer.max_steps=1",
        f"--trainer.default_root_dir={root}",
    ]  # fmt: skip
    log, environment = tmp_path / "log", {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    process = forked.start(
        with_python, python, entry, line, tmp_path, log=log, environment=environment
    )
    process.join(300)
    said = log.read_text()
    assert process.exitcode == 0, said
    assert json.loads((root / "summary.json").read_text())["images_seen"] == 2
    assert "All distributed processes registered. Starting with 2 processes" in said
    for noise in ("gemm_4bit", "kernels", "Tip:", "litlogger", "litmodels", "Traceback"):
        assert noise not in said
