"""The command `import-official`: it converts the pickled network and rejects all other files."""

import copy
import gzip
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import nn

from sid_lsg.checkpoints.official import read_official
from sid_lsg.commands.import_official import import_official
from sid_lsg.export.exported import Exported, read_exported
from sid_lsg.export.exported import exported as exported_as
from sid_lsg.files.sources import locate
from sid_lsg.messages.errors import UsageError
from sid_lsg.teachers import families
from sid_lsg.teachers.stable_diffusion import StableDiffusion
from tests.helpers.tiny_families import FAMILIES, stock_latents
from tests.helpers.tiny_families import PROMPTS as PROMPTS_4
from tests.helpers.tiny_families import SEEDS as SEEDS_4

PROMPTS, SEEDS, T_INIT = ["a red cat", ""], [5, 2**40], 600


@pytest.fixture(scope="module")
def trained(tiny_sd: str) -> StableDiffusion:
    """Load a model with other UNet weights than the base."""
    teacher = StableDiffusion.from_pretrained(tiny_sd)
    teacher.network.load_state_dict(load_file(Path(tiny_sd).parent / "weights_g.safetensors"))
    return teacher


@pytest.fixture
def checkpoint(tmp_path: Path, trained: StableDiffusion) -> Path:
    path = tmp_path / "batch512_t600.pkl"
    path.write_bytes(pickle.dumps({"ema": trained.network}))
    return path


def altered(path: Path, network: nn.Module, **options: Any) -> str:
    """Write a checkpoint of a network with changed options; return its path."""
    config = dict(network.config) | options  # type: ignore[arg-type]
    path.write_bytes(pickle.dumps({"ema": UNet2DConditionModel.from_config(config)}))
    return str(path)


def test_the_folder_samples_as_the_pickled_network(
    tmp_path: Path, checkpoint: Path, tiny_sd: str, trained: StableDiffusion
) -> None:
    output = tmp_path / "runs" / "imported"
    import_official(str(checkpoint), tiny_sd, str(output), t_init=T_INIT)

    own = trained.network.state_dict()
    written = load_file(output / "unet" / "diffusion_pytorch_model.safetensors")
    assert written.keys() == own.keys()
    assert all(written[name].equal(own[name]) for name in own)

    wanted = trained.generate(trained.network, PROMPTS, SEEDS, T_INIT, 1)
    loaded = StableDiffusion.from_pretrained(str(output))
    assert exported_as(loaded.scheduler_config) == Exported(T_INIT, 1)
    assert loaded.generate(loaded.network, PROMPTS, SEEDS, T_INIT, 1).equal(wanted)
    pipeline = DiffusionPipeline.from_pretrained(output)
    pipeline.set_progress_bar_config(disable=True)
    noise = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    found = pipeline(
        PROMPTS, num_inference_steps=1, guidance_scale=0, generator=noise, output_type="latent"
    ).images
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    assert [path.name for path in output.parent.iterdir()] == ["imported"]


def test_a_few_step_transformer_in_half_precision_is_read(tmp_path: Path) -> None:
    """SiD-DiT's files hold the generator's transformer in float16."""
    base = FAMILIES["sd3"].folder
    teacher: Any = families.load(str(base))
    generator = torch.Generator().manual_seed(1)
    for weight in teacher.network.parameters():
        weight.data += 0.02 * torch.randn(weight.shape, generator=generator)
    teacher.network.half().float()
    path = tmp_path / "sd3.pkl"
    path.write_bytes(pickle.dumps({"ema": copy.deepcopy(teacher.network).half()}))
    import_official(str(path), str(base), str(tmp_path / "imported"))
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "imported")
    ours = teacher.generate(teacher.network, PROMPTS_4, SEEDS_4, 999, 4)
    found = stock_latents(pipeline, 4, teacher)
    assert (found - ours).norm() / ours.norm() < 1e-4


def test_half_precision_weights_are_written_exactly_as_float32(
    tmp_path: Path, tiny_sd: str, trained: StableDiffusion
) -> None:
    half = UNet2DConditionModel.from_config(trained.network.config)
    half.load_state_dict(trained.network.state_dict())
    half.half().to(memory_format=torch.channels_last)
    path = tmp_path / "half.pkl"
    path.write_bytes(pickle.dumps({"G": half, "ema": 1}, 2))
    import_official(str(path), tiny_sd, str(tmp_path / "out"), key="G")
    written = load_file(tmp_path / "out" / "unet" / "diffusion_pytorch_model.safetensors")
    assert all(written[name].equal(value.float()) for name, value in half.state_dict().items())


def refused(checkpoint: Path | str, tiny_sd: str, **options: Any) -> str:
    """Import a file that must be rejected without output; return the message."""
    output = options.pop("output", None) or Path(checkpoint).parent / "refused"
    before = sorted(output.parent.rglob("*")) if output.parent.exists() else []
    with pytest.raises(UsageError) as message:
        import_official(str(checkpoint), **{"base": tiny_sd, "output": str(output)} | options)
    assert sorted(output.parent.rglob("*")) == before
    return str(message.value)


def test_files_of_other_kinds_are_rejected(tmp_path: Path, tiny_sd: str) -> None:
    network, path = nn.Linear(2, 2), tmp_path / "file.pkl"
    torch.save({"ema": network}, path)
    assert "zip file of torch.save" in refused(path, tiny_sd)
    torch.save({"ema": network}, path, _use_new_zipfile_serialization=False)
    assert "old file of torch.save" in refused(path, tiny_sd)
    save_file(network.state_dict(), path)
    assert "safetensors file, which needs no import" in refused(path, tiny_sd)
    for content, reason in (
        (gzip.compress(pickle.dumps({"ema": network})), "Unpack it first"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
        (b"", "it is empty"),
        (b"<!DOCTYPE html>", "at byte 0"),
        (b"Some text, no network.\n", "rejected, and none of its code"),
        (pickle.dumps(network), "not a dictionary of networks"),
        (pickle.dumps({"ema": network, "G": 1})[:-50], "truncated"),
        (pickle.dumps({"ema": {"a": 1}}), "not a module of a network"),
    ):
        path.write_bytes(content)
        assert reason in refused(path, tiny_sd)
    path.write_bytes(pickle.dumps({"G": network, "fake\x1b": 1}))
    message = refused(path, tiny_sd)
    assert "--key" in message
    assert "'G', 'fake\\x1b'" in message


def test_unreadable_files_are_rejected(tmp_path: Path, tiny_sd: str) -> None:
    assert "does not exist" in refused(tmp_path / "none.pkl", tiny_sd)
    assert "is not a file" in refused(tmp_path, tiny_sd, output=tmp_path / "out")
    assert "is not a file" in refused("/dev/zero", tiny_sd, output=tmp_path / "out")


@pytest.mark.slow
def test_networks_that_do_not_fit_the_base_are_rejected(
    tmp_path: Path, tiny_sd: str, trained: StableDiffusion
) -> None:
    path, network = tmp_path / "other.pkl", trained.network
    other = altered(path, network, cross_attention_dim=48)
    message = refused(other, tiny_sd)
    assert "attn2.to_k.weight' is [16, 48] in" in message
    assert "[16, 32] in the network of" in message
    network = UNet2DConditionModel.from_config(network.config)
    del network.conv_out.bias
    network.register_buffer("added", torch.ones(1))
    path.write_bytes(pickle.dumps({"ema": network}))
    assert "'added' is [1]" in refused(path, tiny_sd)
    del network.added
    network.conv_out.bias = None
    path.write_bytes(pickle.dumps({"ema": network}))
    assert "'conv_out.bias' is absent from" in refused(path, tiny_sd)
    path.write_bytes(pickle.dumps({"ema": trained.network.__class__.from_config(
        trained.network.config).double()}))  # fmt: skip
    assert "torch.float64, which torch.float32 cannot hold" in refused(path, tiny_sd)


def test_mistakes_in_base_and_t_init_are_rejected(checkpoint: Path, tiny_sd: str) -> None:
    assert "--base: there is no folder" in refused(checkpoint, tiny_sd, base="./none")
    for t_init in (0, 1000):
        assert "--t_init must be 1 to 999" in refused(checkpoint, tiny_sd, t_init=t_init)


def test_options_that_differ_from_the_base_warn(
    tmp_path: Path, tiny_sd: str, trained: StableDiffusion
) -> None:
    """Another number of attention heads has the same weight shapes."""
    path = altered(tmp_path / "heads.pkl", trained.network, attention_head_dim=8, norm_eps=1e-6)
    with pytest.warns(UserWarning, match=r"norm_eps 1e-06 \(here 1e-05\), attention_head_dim 8"):
        import_official(path, tiny_sd, str(tmp_path / "out"))


def test_overwrite_replaces_only_an_imported_folder(
    tmp_path: Path, checkpoint: Path, tiny_sd: str, recwarn: pytest.WarningsRecorder
) -> None:
    output = tmp_path / "out"
    output.mkdir()
    # an empty folder is accepted
    import_official(str(checkpoint), tiny_sd, str(output), t_init=T_INIT)
    assert not recwarn.list
    assert "give --overwrite" in refused(checkpoint, tiny_sd, output=output)
    (output / "README.md").write_text("mine")
    import_official(str(checkpoint), tiny_sd, str(output), t_init=500, overwrite=True)
    assert read_exported(locate(str(output)))[:2] == (500, 1)
    assert not (output / "README.md").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == [checkpoint.name, "out"]

    inside = output / "copy.pkl"
    inside.write_bytes(checkpoint.read_bytes())
    for option, options in (
        ("checkpoint", {"checkpoint": inside}),
        ("base", {"checkpoint": checkpoint, "base": str(output)}),
    ):
        message = refused(tiny_sd=tiny_sd, output=output, overwrite=True, **options)
        assert f"it contains --{option}" in message
    assert "is not empty" in refused(checkpoint, tiny_sd, output=tmp_path, overwrite=True)
    assert "is not a folder" in refused(checkpoint, tiny_sd, output=checkpoint, overwrite=True)


def test_a_failed_save_keeps_the_old_folder(
    tmp_path: Path, checkpoint: Path, tiny_sd: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import_official(str(checkpoint), tiny_sd, str(tmp_path / "out"), t_init=T_INIT)

    def fail(teacher: Any, network: Any, folder: Path, *_: int) -> None:
        folder.mkdir()
        (folder / "half").write_text("")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sid_lsg.export.folder.save_pipeline", fail)
    for output, overwrite in ((tmp_path / "out", True), (tmp_path / "new", False)):
        message = refused(checkpoint, tiny_sd, output=output, overwrite=overwrite)
        assert "No space left" in message
    assert read_exported(locate(str(tmp_path / "out")))[:2] == (T_INIT, 1)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_a_file_without_permission_is_rejected(checkpoint: Path, tiny_sd: str) -> None:
    checkpoint.chmod(0)
    assert "Permission denied" in refused(checkpoint, tiny_sd)


def test_a_pickled_call_is_rejected_and_named(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {tmp_path / 'canary'}",)

    path = tmp_path / "evil.pkl"
    path.write_bytes(pickle.dumps({"ema": Evil()}))
    with pytest.raises(
        UsageError, match=r"rejected, and none of its code was executed: it holds 'posix\."
    ):
        read_official(str(path))
    assert not (tmp_path / "canary").exists()
