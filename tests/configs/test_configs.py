"""Every shipped config runs for two iterations; the tiny pipeline replaces large teachers."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
import yaml
from jsonargparse import Namespace

from sid_lsg.cli import main
from sid_lsg.metrics.loaded import named
from sid_lsg.training.trainer_options import check_trainer
from tests.helpers.paths import CONFIGS

ALL = sorted(CONFIGS.rglob("*.yaml"))
COMPLETE = [path for path in ALL if path.parent == CONFIGS]
TRAINERS = [path for path in ALL if path.parent.name == "trainer"]
SWEEPS = [
    path for path in ALL if path.parent.name == "sweep"
]  # tests/configs/test_sweep.py tests them for wandb
OTHERS = ("trainer", "sweep", "evaluate", "study")  # overlays of a machine, wandb, other commands
OVERLAYS = [path for path in ALL if path.parent != CONFIGS and path.parent.name not in OTHERS]


def small(tmp_path: Path, small_sd: str, path: Path) -> list[str]:
    """Return the options that make a complete config small enough to run here."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red cat\ntwo dogs\na blue bird\nthe moon\n")
    options = {
        "data.batch_size": "4",
        "data.num_workers": "0",
        "data.num_heldout": "0",
        "model.micro_batch_size": "2",
        "trainer.max_steps": "2",
        "trainer.accelerator": "cpu",
        "trainer.devices": "1",
        "trainer.default_root_dir": str(tmp_path / "run"),
        "progress.refresh_rate": "0",
        "metrics.num_images": "4",
        "metrics.batch_size": "4",
        "metrics.teacher_steps": "2",
        "metrics.num_pictured": "2",
        "image_grid.num_images": "4",
    }
    if not str(yaml.safe_load(path.read_text())["model"]["teacher"]).startswith("package:"):
        options |= {
            "model.teacher": small_sd,
            "model.resolution": "64",
            "data.prompts": str(prompts),
            "metrics.clip": "package:demo/fashion/clip",
        }
    return [part for name, value in options.items() for part in (f"--{name}", value)]


def check(part: dict[str, Any], whole: dict[str, Any]) -> None:
    """Check that nested options are among others."""
    for name, value in part.items():
        if isinstance(value, dict):
            check(value, whole[name])
        else:
            assert whole[name] == value, name


@pytest.mark.slow
@pytest.mark.parametrize("path", COMPLETE, ids=lambda path: path.name)
def test_complete_configs_run(
    path: Path, small_sd: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.chdir(tmp_path)
    main(["fit", "--config", str(path), *small(tmp_path, small_sd, path)])
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["images_seen"] == 8
    assert (tmp_path / "run" / summary["export"] / "model_index.json").is_file()
    assert {path.name for path in tmp_path.iterdir()} == {"run", "prompts.txt"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "path", OVERLAYS + TRAINERS, ids=lambda path: f"{path.parent.name}/{path.name}"
)
def test_overlays_run(
    path: Path, small_sd: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run the complete config with the overlay for two iterations, without machine options."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.chdir(tmp_path)
    base = CONFIGS / "lsg.yaml"
    options = [*small(tmp_path, small_sd, base), "--trainer.num_nodes", "1"]
    environment = dict(os.environ)
    try:
        main(["fit", "--config", str(base), "--config", str(path), *options])
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
        # Remove the port that Lightning set, which later tests would use as theirs.
        os.environ.clear()
        os.environ.update(environment)
    assert json.loads((tmp_path / "run/summary.json").read_text())["images_seen"] == 8
    saved = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    said = yaml.safe_load(path.read_text())
    assert saved["trainer"]["strategy"] == said.get("trainer", {}).get("strategy", "auto")
    own = {n: v for n, v in said.get("model", {}).items() if f"--model.{n}" not in options}
    check(own, saved["model"])


@pytest.mark.parametrize("path", OVERLAYS, ids=lambda path: f"{path.parent.name}/{path.name}")
@pytest.mark.slow
def test_overlays_merge_over_a_complete_config(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(
            ["fit", "--config", str(CONFIGS / "lsg.yaml"), "--config", str(path), "--print_config"]
        )
    assert end.value.code == 0
    merged = yaml.safe_load(capsys.readouterr().out)
    said = yaml.safe_load(path.read_text())
    check(said, merged)
    teacher = "stable-diffusion-v1-5/stable-diffusion-v1-5"
    assert merged["model"]["teacher"] == said["model"].get("teacher", teacher)


@pytest.mark.parametrize("path", TRAINERS, ids=lambda path: path.name)
@pytest.mark.slow
def test_trainer_overlays_have_accepted_options(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The header names its own file, and the Trainer accepts the options."""
    header = path.read_text().split("\ntrainer:")[0]
    commands = header.count("fit --config configs/lsg.yaml")
    assert header.count(f"--config {path.relative_to(CONFIGS.parent)} ...") == commands > 0
    with pytest.raises(SystemExit) as end:
        main(
            ["fit", "--config", str(CONFIGS / "lsg.yaml"), "--config", str(path), "--print_config"]
        )
    assert end.value.code == 0
    trainer = yaml.safe_load(capsys.readouterr().out)["trainer"]
    assert trainer.items() >= yaml.safe_load(path.read_text())["trainer"].items()
    assert trainer["max_steps"] == 17200  # from lsg.yaml
    check_trainer(Namespace(trainer))
    if path.name != "cpu.yaml":
        assert (trainer["accelerator"], trainer["precision"]) == ("gpu", "bf16-mixed")


def test_the_multinode_header_shows_torchrun_and_srun() -> None:
    text = (CONFIGS / "trainer/multinode.yaml").read_text()
    options = yaml.safe_load(text)["trainer"]
    for start in (
        f"torchrun --nnodes {options['num_nodes']} --nproc-per-node {options['devices']} ",
        f"srun --nodes {options['num_nodes']} --ntasks-per-node {options['devices']} ",
    ):
        assert f"#   {start}" in text


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.name)
def test_headers_state_the_command(path: Path) -> None:
    header = path.read_text().split("\n\n")[0]
    assert header.startswith("#")
    if path in SWEEPS:
        assert f"wandb sweep {path.relative_to(CONFIGS.parent)}" in header
    else:
        command = path.parent.name if path.parent.name in ("evaluate", "study") else "fit"
        assert f"sid_lsg.cli {command}" in path.read_text().split("\nmodel:")[0]


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("evaluate/*.yaml")), ids=lambda p: p.name)
def test_evaluations_name_their_networks_with_revisions(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["evaluate", "--config", str(path), "--model", "x", "--print_config"])
    found = yaml.safe_load(capsys.readouterr().out)
    sources = [*named(found["scores"], "scores").values(), found["clip"]]
    names = [name for name in sources if name and not name.startswith(("package:", "runs/"))]
    assert all("@" in name for name in names)
    assert found["num_images"] >= 2000
    with pytest.raises(SystemExit, match="0"):  # a list may replace the config's mapping
        main(["evaluate", "--config", str(path), "--scores", "[]", "--print_config"])
    assert yaml.safe_load(capsys.readouterr().out)["scores"] == []
