"""Exported generators: at the end of a run, during it, and on a full disk."""

import errno
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from sid_lsg.callbacks import Checkpoint, Export
from sid_lsg.export.folder import save_pipeline
from sid_lsg.generation.models import load_model
from sid_lsg.messages.errors import UsageError
from tests.helpers.callback_runs import (
    Files,
    Run,
    fit,
)


def test_the_export_contains_the_ema(run: Run) -> None:
    folder = run.root / "generator"
    assert not (folder / "earlier.txt").exists()
    weights = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    ema = run.module.ema.state_dict()
    assert weights.keys() == ema.keys()
    assert all(torch.equal(value, ema[name]) for name, value in weights.items())


@pytest.mark.parametrize("error", [OSError, SafetensorError])
def test_a_failed_export_keeps_the_earlier_one(
    error: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(teacher: Any, network: Any, folder: Path, *settings: Any) -> None:
        folder.mkdir()
        raise error("no space left")

    (tmp_path / "generator").mkdir()
    (tmp_path / "generator" / "model_index.json").write_text("earlier")
    module = SimpleNamespace(
        teacher=None, t_init=625, num_steps=1, noise="fresh",
        averaged=lambda: nullcontext(torch.nn.Identity()),
    )  # fmt: skip
    monkeypatch.setattr("sid_lsg.callbacks.export.save_pipeline", fail)
    strategy = SimpleNamespace(broadcast=lambda value: value)
    trainer: Any = SimpleNamespace(default_root_dir=tmp_path, strategy=strategy, callbacks=[])
    export = Export()
    export.on_train_end(trainer, module)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="could not be written .*no space"):
        export.on_trained(trainer, module)  # after the last checkpoint
    assert (tmp_path / "generator" / "model_index.json").read_text() == "earlier"


def test_an_export_that_ends_the_run_loses_no_iteration(
    small_sd: str, files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning calls checkpoints last; the weights are saved before whatever an export does."""

    def fail(*_: Any) -> None:
        raise torch.OutOfMemoryError("no memory left")

    monkeypatch.setattr("sid_lsg.callbacks.export.save_pipeline", fail)
    callbacks = Export(), Checkpoint(every_n_steps=100)
    with pytest.raises(torch.OutOfMemoryError):
        fit(small_sd, files, tmp_path, *callbacks, max_steps=2)
    content = torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)
    assert content["global_step"] == 2


@pytest.mark.slow
def test_generators_exported_during_training_are_kept(
    small_sd: str, files: Files, tmp_path: Path
) -> None:
    """They have the same files as the export of a run that ends at that iteration."""
    run = fit(small_sd, files, tmp_path / "long", Export(every_n_steps=2), max_steps=5)
    fit(small_sd, files, tmp_path / "short", Export(), max_steps=2)
    kept = sorted(path.name for path in (run.root / "generators").iterdir())
    assert kept == ["step-0000002", "step-0000004"]
    early, end = run.root / "generators" / kept[0], run.root / "generator"
    for path in (p for p in (tmp_path / "short" / "generator").rglob("*") if p.is_file()):
        assert (early / path.relative_to(tmp_path / "short" / "generator")).read_bytes() == (
            path.read_bytes()
        ), path
    weights = Path("unet", "diffusion_pytorch_model.safetensors")
    assert (early / weights).read_bytes() != (end / weights).read_bytes()
    plain = fit(small_sd, files, tmp_path / "plain", Export(), max_steps=5)  # the same training
    assert (plain.root / "generator" / weights).read_bytes() == (end / weights).read_bytes()
    assert load_model(str(early)).sample(["a red dress"], [0]).shape == (1, 3, 64, 64)


def test_a_full_disk_during_training_loses_only_that_export(
    small_sd: str, files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(teacher: Any, network: Any, folder: Path, *args: Any) -> None:
        save_pipeline(teacher, network, folder, *args)
        if folder.parent.name == "generators":
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("sid_lsg.callbacks.export.save_pipeline", fail)
    with pytest.warns(UserWarning, match=r"generators/step-0000001 could not be .*No space left"):
        fit(small_sd, files, tmp_path, Export(every_n_steps=1), max_steps=2)
    assert list((tmp_path / "generators").iterdir()) == []
    assert (tmp_path / "generator" / "model_index.json").is_file()
