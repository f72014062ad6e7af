"""Continue, export and sample a run that an earlier version trained, with ungrouped options.

tests/data/earlier_run.yaml is the config.yaml that the earlier version wrote; its checkpoints hold
the same configuration.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from sid_lsg.checkpoints.file import save
from sid_lsg.cli import main
from sid_lsg.commands.export import export
from sid_lsg.commands.generate import generate
from tests.helpers.paths import DATA

EARLIER = DATA / "earlier_run.yaml"


@pytest.fixture
def run(tiny_sd: str, tmp_path: Path) -> tuple[Path, list[str]]:
    """Return the folder of a run of one iteration, and the command that continues it."""
    prompts, root = tmp_path / "prompts.txt", tmp_path / "run"
    prompts.write_text("\n".join(f"a {i} b" for i in range(4)))
    own = ["--data.prompts", str(prompts), "--trainer.default_root_dir", str(root)]
    command = ["fit", "--config", str(EARLIER), "--model.teacher", tiny_sd, *own]
    main(command)
    path = (root / "checkpoints" / "last.ckpt").resolve()
    content = torch.load(path, weights_only=True)
    config = yaml.safe_load(EARLIER.read_text())
    config["model"]["teacher"] = tiny_sd
    content["sid_lsg"]["config"] = config
    save(content, path)
    return root, command


def test_a_config_of_an_earlier_version_is_read(run: tuple[Path, list[str]]) -> None:
    root, _ = run
    model = yaml.safe_load((root / "config.yaml").read_text())["model"]
    assert model["ema"] == {
        "halflife_images": 100.0,
        "rampup_ratio": 0.05,
        "device": None,
        "snapshot_images": 0,
    }
    assert model["memory"] == {
        "activations": "lean",
        "checkpointing": ["teacher"],
        "frozen_precision": "bf16",
    }
    assert model["gradients"] == {
        "clip_val": 1.0,
        "clip_algorithm": "norm",
        "generator_scale": 1.0,
    }
    assert model["lora"]["generator"]["rank"] == 2
    earlier = yaml.safe_load(EARLIER.read_text())["model"]
    earlier["guidance"] |= {"true_cfg": True, "embedded": None}  # what such runs did
    kept = ("alpha", "t_init", "tmin", "tmax", "num_steps", "guidance", "optimizer_fake")
    assert {name: model[name] for name in kept} == {name: earlier[name] for name in kept}


@pytest.mark.slow
def test_a_checkpoint_of_an_earlier_version_works(
    run: tuple[Path, list[str]], tmp_path: Path
) -> None:
    root, command = run
    checkpoint = str((root / "checkpoints" / "last.ckpt").resolve())
    export(checkpoint, str(tmp_path / "exported"))
    card = (tmp_path / "exported" / "README.md").read_text()
    assert "| EMA half-life | 100 images |" in card
    assert (tmp_path / "exported" / "lora").is_dir()  # LoRA, as the record states
    generate(checkpoint, "a cat", output=str(tmp_path / "images"), accelerator="cpu")
    assert (tmp_path / "images" / "contact_sheet.png").is_file()
    main([*command, "--ckpt_path", "last", "--trainer.max_steps", "2"])
    assert (root / "checkpoints" / "0000002.ckpt").exists()


def test_an_earlier_option_name_is_answered_with_the_new_one(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for command in ("fit", "estimate", "benchmark"):
        with pytest.raises(SystemExit) as end:
            main([command, "--model.teacher", "nobody/nothing", "--model.lora_generator.rank", "4"])
        assert end.value.code == 2
        error = capsys.readouterr().err
        assert error.endswith(
            "error: --model.lora_generator.rank was renamed: give --model.lora.generator.rank 4.\n"
        )


def test_an_earlier_option_name_in_a_sweep_is_read(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep")
    monkeypatch.setenv("WANDB_RUN_ID", "run")
    with pytest.raises(SystemExit) as end:
        main(["fit", "--model.ema_halflife_images=250", "--model.memory=lean", "--print_config"])
    assert end.value.code == 0
    model: dict[str, Any] = yaml.safe_load(capsys.readouterr().out)["model"]
    assert model["ema"]["halflife_images"] == 250
    assert model["memory"]["activations"] == "lean"
