"""Several processes train and score as one does."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

REPOSITORY = Path(__file__).parent.parent


def fit(tiny_sd: str, tmp_path: Path, name: str, *options: str) -> dict[str, Tensor]:
    """Train in real processes; return the final checkpoint's networks, and the final scores."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red cat\ntwo dogs\na blue bird\nthe moon\nan old book\n")
    root = tmp_path / name
    command = [
        sys.executable, "-m", "sid_lsg.cli", "fit", "--model.teacher", tiny_sd,
        "--data.prompts", str(prompts), "--data.batch_size", "4", "--data.num_workers", "0",
        # Adam with beta1 = 0 would turn the rounding of a tiny gradient into a whole step.
        "--model.optimizer_fake", "torch.optim.SGD", "--model.optimizer_fake.lr", "1e-4",
        "--model.optimizer_generator", "torch.optim.SGD", "--model.optimizer_generator.lr", "1e-4",
        "--trainer.accelerator", "cpu", "--trainer.max_steps", "3",
        "--trainer.log_every_n_steps", "1", "--progress.refresh_rate", "0",
        "--image_grid.every_n_steps", "0", "--trainer.default_root_dir", str(root),
        "--metrics.clip", "package:demo/fashion/clip", "--metrics.protocol", "clip",
        "--metrics.reference", "package:demo/fashion/reference.safetensors",
        "--metrics.num_images", "7", "--metrics.batch_size", "3", "--metrics.teacher_steps", "1",
        "--metrics.every_n_images", "8", "--health.every_n_images", "8", *options,
    ]  # fmt: skip
    run = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    saved = torch.load(root / "checkpoints/last.ckpt", weights_only=True)
    assert saved["global_step"] == 3
    rows = (root / "metrics.csv").read_text().splitlines()
    assert len(rows) == 1 + 3
    summary = json.loads((root / "summary.json").read_text())
    return saved["state_dict"] | {
        name: torch.tensor(value) for name, value in summary.items() if "_clip_7" in name
    }


@pytest.fixture(scope="module")
def alone(tiny_sd: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    return fit(tiny_sd, tmp_path_factory.mktemp("alone"), "alone")


@pytest.mark.parametrize(
    "options",
    [("ddp_multi",), ("ddp", "--model.micro_batch_size", "1")],
    ids=["ddp_multi", "ddp, micro-batches"],
)
def test_two_processes_train_as_one(
    options: tuple[str, ...], alone: dict[str, Tensor], tiny_sd: str, tmp_path: Path
) -> None:
    strategy, *others = options
    devices = ["--trainer.devices", "2", "--trainer.strategy", strategy]
    together = fit(tiny_sd, tmp_path, "two", *devices, *others)
    assert together.keys() == alone.keys()
    for network in ("fake_score", "generator", "ema"):
        names = [name for name in alone if name.startswith(f"{network}.")]
        ours = torch.cat([together[name].flatten() for name in names])
        theirs = torch.cat([alone[name].flatten() for name in names])
        assert float((ours - theirs).norm() / theirs.norm()) < 1e-6
    scores = [name for name in alone if "_clip_7" in name]
    assert len(scores) == 3 * 7
    for name in scores:
        assert float(together[name]) == pytest.approx(float(alone[name]), rel=1e-3, abs=1e-6), name
