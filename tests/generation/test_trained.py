"""The generator of a checkpoint equals the run's export, with and without adapters."""

import shutil
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file

from sid_lsg.checkpoints.opening import find_checkpoint, require_checkpoint
from sid_lsg.cli import main
from sid_lsg.commands.export import export
from sid_lsg.generation.trained import load_trained
from sid_lsg.messages.errors import UsageError
from sid_lsg.method.post_hoc_ema import WIDTHS
from sid_lsg.networks.adapted import adapters

UNET = "unet/diffusion_pytorch_model.safetensors"
LORA = "lora/pytorch_lora_weights.safetensors"


@pytest.fixture(scope="module", params=[False, True], ids=["whole", "lora"])
def run(
    request: pytest.FixtureRequest, tiny_sd: str, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Train a run of two iterations."""
    folder = tmp_path_factory.mktemp("trained")
    prompts = folder / "prompts.txt"
    prompts.write_text("\n".join(f"a {i} b" for i in range(8)))
    lora = ["--model.lora.generator.rank=2", "--model.lora.generator.alpha=3"]
    main([
        "fit", f"--model.teacher={tiny_sd}", "--model.optimizer_generator.lr=0.01",
        "--model.t_init=500", *(lora if request.param else []), f"--data.prompts={prompts}",
        "--data.batch_size=2", "--data.num_workers=0", "--trainer.max_steps=2",
        "--trainer.accelerator=cpu", "--metrics.num_images=2", "--metrics.clip=null",
        "--model.ema.snapshot_images=2", "--image_grid.num_images=1",
        "--health.every_n_images=1000",
        f"--trainer.default_root_dir={folder / 'run'}",
    ])  # fmt: skip
    return folder / "run"


@pytest.mark.slow
def test_the_checkpoints_generator_equals_the_export(
    run: Path, tiny_sd: str, tmp_path: Path
) -> None:
    found = load_trained(require_checkpoint(run))
    assert (found.t_init, found.num_steps) == (500, 1)
    assert found.record["config"]["model"]["teacher"] == tiny_sd
    exported, teacher = load_file(run / "generator" / UNET), load_file(f"{tiny_sd}/{UNET}")
    own = found.teacher.network.state_dict()
    assert own.keys() == exported.keys()
    assert all(torch.equal(own[name], value) for name, value in exported.items())
    assert any(not torch.equal(own[name], value) for name, value in teacher.items())

    export(str(run), str(tmp_path / "out"))
    again = load_file(tmp_path / "out" / UNET)
    assert all(torch.equal(again[name], value) for name, value in exported.items())


@pytest.mark.slow
def test_adapters_are_also_exported_separately(run: Path, tiny_sd: str, tmp_path: Path) -> None:
    found = load_trained(require_checkpoint(run))
    export(str(run), str(tmp_path / "out"))
    files = [folder / LORA for folder in (run / "generator", tmp_path / "out")]
    if found.adapted is None:
        assert not any(path.exists() for path in files)
        return
    assert adapters(found.adapted)
    first, second = map(load_file, files)
    assert first.keys() == second.keys()
    assert all(torch.equal(second[name], value) for name, value in first.items())
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_sd)
    pipeline.load_lora_weights(tmp_path / "out" / "lora")
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
    merged = pipeline.unet.state_dict()
    for name, value in found.teacher.network.state_dict().items():
        assert torch.allclose(merged[name], value, atol=1e-6), name


def test_paths_name_a_file_or_a_run(run: Path, tmp_path: Path) -> None:
    last = run / "checkpoints" / "last.ckpt"
    assert require_checkpoint(last).path == last
    assert require_checkpoint(run).path.resolve() == last.resolve()
    assert find_checkpoint(run / "generator") is None
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UsageError, match="--ckpt_path: .* contains no checkpoint yet"):
        find_checkpoint(tmp_path)
    (tmp_path / "checkpoints" / "last.ckpt").write_bytes(b"half of it")
    with pytest.raises(
        UsageError, match="^--model: there is no valid checkpoint .* start a new run"
    ):
        find_checkpoint(tmp_path, "model")


@pytest.mark.slow
def test_unusable_checkpoints_are_rejected(run: Path, tiny_sd: str, tmp_path: Path) -> None:
    last = run / "checkpoints" / "last.ckpt"

    def refused(path: Path, option: str = "ckpt_path", teacher: str | None = None) -> str:
        with pytest.raises(UsageError) as error:
            load_trained(require_checkpoint(path, option), teacher, option=option)
        return str(error.value)

    assert "there is no checkpoint" in refused(tmp_path / "none.ckpt")
    assert "--model: there is no checkpoint" in refused(tmp_path / "none", option="model")
    assert "--teacher: there is no folder 'none'" in refused(last, teacher="./none")
    assert "Give that one with `export --teacher`" in refused(last, teacher="package:demo/fashion")

    content = torch.load(last, map_location="cpu", weights_only=True)
    content["sid_lsg"]["config"] = None
    torch.save(content, tmp_path / "unsaid.ckpt")
    assert "holds no config of its training" in refused(tmp_path / "unsaid.ckpt")
    shutil.copy(last, tmp_path / "cut.ckpt")
    with (tmp_path / "cut.ckpt").open("r+b") as file:
        file.truncate(5000)
    assert "is truncated or corrupted" in refused(tmp_path / "cut.ckpt")

    content = torch.load(last, map_location="cpu", weights_only=True)
    name = next(name for name in content["state_dict"] if name.startswith("ema."))
    for value in (torch.nan, torch.inf):
        weight = content["state_dict"][name]
        weight[(-1,) * weight.dim()] = value
        torch.save(content, tmp_path / "nan.ckpt")
        said = refused(tmp_path / "nan.ckpt")
        assert f"{name.removeprefix('ema.')!r} of the generator in" in said
        assert "is not finite. Give an earlier checkpoint" in said


@pytest.mark.slow
def test_an_ema_of_another_width_is_made_of_the_snapshots(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = sorted((run / "ema_snapshots").iterdir())
    assert [file.name for file in files] == [f"images-{n:09d}.safetensors" for n in (2, 4)]
    state = require_checkpoint(run).content["state_dict"]
    snapshot = load_file(files[-1])
    for number, width in enumerate(WIDTHS):
        prefix = f"averages.{number}."
        kept = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        own = {k: v for k, v in snapshot.items() if k.startswith(f"{width}.")}
        assert {k.removeprefix(f"{width}.") for k in own} <= kept.keys()
        assert all(torch.equal(kept[k.removeprefix(f"{width}.")], v) for k, v in own.items())

    found = load_trained(require_checkpoint(run), ema_width=0.1)
    network = found.adapted or found.teacher.network
    weights = dict((adapters(network) or dict(network.named_parameters())).items())
    for name, value in weights.items():
        torch.testing.assert_close(value.detach(), snapshot[f"0.1.{name}"], rtol=1e-5, atol=1e-7)
    (default,) = (load_trained(require_checkpoint(run)),)
    other = default.teacher.network.state_dict()
    merged = found.teacher.network.state_dict()
    assert any(not torch.equal(other[name], value) for name, value in merged.items())
    with pytest.raises(UsageError, match=r"--ema_width 0.2: the average of 2 snapshots is 45% off"):
        load_trained(require_checkpoint(run), ema_width=0.2)

    for options, message in (
        (["--ema_width=0.9"], "--ema_width must be 0.03 to 0.25, not 0.9."),
        (["--ema_width=0.1"], "has no snapshots of its first 4 images. Train with"),
    ):
        folder = tmp_path / "moved"
        shutil.copytree(run, folder, ignore=shutil.ignore_patterns("ema_snapshots"))
        out = tmp_path / "out"
        with pytest.raises(SystemExit) as stopped:
            main(["export", f"--ckpt_path={folder}", f"--output={out}", *options])
        assert stopped.value.code == 2
        assert message in capsys.readouterr().err
        assert not out.exists()
        shutil.rmtree(folder)
