"""The options of adapters, on the command line and in the module."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from sid_lsg.cli import main
from sid_lsg.messages.errors import UsageError
from sid_lsg.options.lora import LoRA
from sid_lsg.options.training import EMA, Adapters
from sid_lsg.training.module import SiDLSG
from tests.helpers.adapters import ADAPTERS, PROMPTS, make
from tests.helpers.modules import merged


@pytest.mark.slow
def test_the_command_line_trains_exports_and_continues_adapters(
    small_sd: str, tmp_path: Path
) -> None:
    prompts, overlay, root = (tmp_path / name for name in ("prompts.txt", "lora.yaml", "run"))
    prompts.write_text("\n".join(PROMPTS))
    overlay.write_text("model:\n  lora:\n    fake_score:\n      rank: 3\n      targets: [to_q]\n")
    options = {
        "config": overlay, "model.teacher": small_sd, "model.lora.generator.rank": 2,
        "model.lora.generator.alpha": 6, "data.prompts": prompts, "data.batch_size": 4,
        "data.num_workers": 0, "data.num_heldout": 0, "trainer.accelerator": "cpu",
        "trainer.devices": 1, "trainer.default_root_dir": root, "progress.refresh_rate": 0,
        "image_grid.num_images": 2,
    }  # fmt: skip
    command = ["fit", *(str(part) for name, value in options.items() for part in (f"--{name}", value))]  # noqa: E501  # fmt: skip
    main([*command, "--trainer.max_steps", "1"])
    main([*command, "--trainer.max_steps", "2", "--ckpt_path", "last"])
    model = yaml.safe_load((root / "config.yaml").read_text())["model"]
    attention = ["to_q", "to_k", "to_v", "to_out.0"]
    assert model["lora"]["generator"] == {"rank": 2, "alpha": 6.0, "targets": attention}
    assert model["lora"]["fake_score"] == {"rank": 3, "alpha": None, "targets": ["to_q"]}
    saved = torch.load(root / "checkpoints" / "last.ckpt", weights_only=True)
    recorded = saved["sid_lsg"]["config"]["model"]["lora"]
    assert LoRA(**recorded["generator"]) == ADAPTERS.generator
    module = make(small_sd, lora=Adapters(LoRA(3, targets=["to_q"]), LoRA(2, 6.0)))
    module.load_state_dict(saved["state_dict"])
    (file,) = (root / "generator" / "unet").glob("*.safetensors")
    exported, plain = load_file(file), merged(module.ema).state_dict()
    assert exported.keys() == plain.keys()
    assert all(torch.equal(value, plain[name]) for name, value in exported.items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model.lora.generator.rank", "0"], "rank must be at least 1"),
        (["--model.lora.generator.alpha", "2"], "rank"),
        (["--model.lora.generator.rnk", "2"], "rnk"),
    ],
)
def test_invalid_adapter_options_are_rejected(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    prompts, root = tmp_path / "prompts.txt", tmp_path / "run"
    prompts.write_text("a cat")
    common = ["--data.prompts", str(prompts), "--trainer.default_root_dir", str(root)]
    with pytest.raises(SystemExit) as end:
        main(["fit", "--model.teacher", "nobody/nothing", *common, *options])
    assert not root.exists()
    assert end.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank must be at least 1"),
        ({"rank": 4, "alpha": 0.0}, "alpha must be a positive"),
        ({"rank": 4, "alpha": float("nan")}, "alpha must be a positive"),
        ({"rank": 4, "targets": []}, "targets must be"),
    ],
)
@pytest.mark.parametrize("name", ["fake_score", "generator"])
def test_adapters_without_effect_are_rejected(name: str, options: Any, message: str) -> None:
    """They are rejected before the teacher is loaded, which may need a download."""
    with pytest.raises(UsageError, match=rf"--model\.lora\.{name}\.{message}"):
        SiDLSG("nobody/nothing", lora=Adapters(**{name: LoRA(**options)}))


def test_adapters_cannot_be_kept_apart_from_their_base(small_sd: str) -> None:
    with pytest.raises(UsageError, match="--model.ema.device cpu: .*Leave the option out"):
        make(small_sd, lora=Adapters(generator=LoRA(4)), ema=EMA(device="cpu"))
    make(small_sd, lora=Adapters(LoRA(4)), ema=EMA(device="cpu"))
