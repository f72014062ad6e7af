"""A folder or option that Stable Diffusion cannot use is refused, with its name in the message."""

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file

import sid_lsg
from sid_lsg.messages.errors import UsageError
from sid_lsg.teachers.stable_diffusion import StableDiffusion
from tests.helpers.damage import Trap
from tests.helpers.model_folders import WEIGHTS, edit

PICKLES = {
    "unet": "diffusion_pytorch_model.bin",
    "vae": "diffusion_pytorch_model.bin",
    "text_encoder": "pytorch_model.bin",
}
LAYOUT = ", ".join(StableDiffusion.parts)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def refusal(model: str | Path, **options: Any) -> str:
    with pytest.raises(UsageError) as caught:
        StableDiffusion.from_pretrained(str(model), **options)
    return str(caught.value)


@pytest.mark.parametrize("resolution", [100, 8, 0, -64, 72])
@pytest.mark.slow
def test_an_unusable_resolution_is_rejected(tiny_sd: str, resolution: int) -> None:
    message = refusal(tiny_sd, resolution=resolution)
    assert message.startswith(f"--model.resolution: {resolution} pixels")
    assert "multiple of 16" in message
    assert refusal(tiny_sd, resolution=resolution, option="model").startswith("--resolution: ")


def test_a_network_without_a_size_needs_a_resolution(folder: Path) -> None:
    edit(folder / "unet" / "config.json", sample_size=None)
    assert StableDiffusion.from_pretrained(str(folder), resolution=32).latent_shape == (4, 4, 4)
    assert "--model.resolution" in refusal(folder)


@pytest.mark.parametrize("model", ["no/such/folder", "./nothing", "nothing", "~/no/such", "/nope"])
def test_a_missing_folder_is_rejected(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    message = refusal(model)
    assert message.startswith("--model.teacher: there is no folder")
    assert Path(model).name in message
    assert "Give a diffusers folder" in message


def test_a_missing_package_folder_is_rejected() -> None:
    message = refusal("package:demo/no_such_teacher")
    assert message.startswith("--model.teacher: there is no folder")
    assert str(Path(sid_lsg.__file__).parent / "demo" / "no_such_teacher") in message


@pytest.mark.usefixtures("offline")
def test_an_unreachable_hub_id_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    message = refusal("nobody/no-such-model", revision="main")
    assert message.startswith("--model.teacher: could not load 'nobody/no-such-model' (the Hub can")
    assert "HF_HUB_OFFLINE is set" in message
    assert f"the cache {huggingface_hub.constants.HF_HUB_CACHE!r} does not hold it" in message
    assert "Give its folder" in message


@pytest.mark.parametrize("part", StableDiffusion.parts)
def test_a_folder_without_a_part_is_rejected(folder: Path, part: str) -> None:
    shutil.rmtree(folder / part)
    message = refusal(folder)
    assert message.startswith("--model.teacher: ")
    assert f"it lacks {part} (StableDiffusionPipeline)" in message
    assert LAYOUT in message
    assert "--model.loading.subfolders" in message


@pytest.mark.parametrize("foreign", ["text_encoder_2", "transformer"])
def test_a_model_of_another_family_is_rejected(folder: Path, foreign: str) -> None:
    (folder / foreign).mkdir()
    edit(folder / "model_index.json", _class_name="StableDiffusionXLPipeline")
    message = refusal(folder)
    assert message.startswith("--model.teacher: ")
    assert f"it holds {foreign} (StableDiffusionXLPipeline)" in message
    assert LAYOUT in message


def test_a_single_file_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    message = refusal(tmp_path / "model.safetensors")
    assert message.startswith(f"--model.teacher: '{tmp_path}/model.safetensors' is a file.")
    assert LAYOUT in message
    assert "StableDiffusionPipeline.from_single_file(" in message


def test_an_unknown_part_in_subfolders_is_rejected(tiny_sd: str) -> None:
    message = refusal(tiny_sd, subfolders={"unett": "unet_ema"})
    assert message.startswith("--model.loading.subfolders: 'unett' is not a part")
    assert LAYOUT in message


def test_a_missing_subfolder_is_rejected(tiny_sd: str) -> None:
    message = refusal(tiny_sd, subfolders={"unet": "unet_ema"})
    assert "it lacks unet" in message
    assert "--model.loading.subfolders" in message


def replace_unet(folder: Path, **config: Any) -> None:
    """Replace the folder's UNet with a random one of another configuration."""
    changed = UNet2DConditionModel.load_config(folder / "unet") | config
    UNet2DConditionModel.from_config(changed).save_pretrained(folder / "unet")


def replace_prediction(folder: Path) -> None:
    edit(folder / "scheduler" / "scheduler_config.json", prediction_type="sample")


@pytest.mark.parametrize(
    ("spoil", "found"),
    [
        (lambda f: replace_unet(f, in_channels=9), "takes 9 channels and its VAE's latents have 4"),
        (lambda f: replace_unet(f, cross_attention_dim=48), "attends to 48 features and its text"),
        (
            lambda f: replace_unet(f, class_embed_type="timestep"),
            "the config of its unet has class_embed_type 'timestep', not null",
        ),
        (replace_prediction, "prediction_type is 'sample', not one of epsilon, v_prediction"),
    ],
    ids=["inpainting", "cross-attention", "class embedding", "sample prediction"],
)
def test_parts_that_do_not_fit_together_are_rejected(
    folder: Path, spoil: Callable[[Path], None], found: str
) -> None:
    spoil(folder)
    message = refusal(folder)
    assert message.startswith("--model.teacher: ")
    assert found in message
    assert "Give a text-to-image model of Stable Diffusion" in message


@pytest.mark.parametrize("part", WEIGHTS)
def test_pickled_weights_are_never_opened(folder: Path, part: str, tmp_path: Path) -> None:
    (folder / part / WEIGHTS[part]).unlink()
    mark = tmp_path / "unpickled"
    (folder / part / PICKLES[part]).write_bytes(pickle.dumps(Trap(mark)))
    message = refusal(folder)
    assert not mark.exists()
    assert message.startswith(f"--model.teacher: could not load the {part} of")
    assert f"its weights are only there as {PICKLES[part]}, a pickle file" in message
    assert 'from_pretrained("MODEL", use_safetensors=False).save_pretrained("FOLDER")' in message


@pytest.mark.parametrize("part", WEIGHTS)
@pytest.mark.parametrize("found", ["a Git LFS pointer", "half a file"])
def test_incomplete_weights_are_rejected(folder: Path, part: str, found: str) -> None:
    path = folder / part / WEIGHTS[part]
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0a1b2c\nsize 835584\n"
    path.write_bytes(pointer if found == "a Git LFS pointer" else path.read_bytes()[:10_000])
    assert refusal(folder).startswith(f"--model.teacher: could not load the {part} of")


@pytest.mark.parametrize("part", WEIGHTS)
def test_a_missing_weight_is_rejected(folder: Path, part: str) -> None:
    path = folder / part / WEIGHTS[part]
    weights = load_file(path)
    weights.pop(max(weights, key=lambda name: weights[name].numel()))
    save_file(weights, path, {"format": "pt"})
    assert refusal(folder).startswith("--model.teacher: ")


@pytest.mark.parametrize(
    "path", ["model_index.json", "text_encoder/config.json", "scheduler/scheduler_config.json"]
)
def test_a_malformed_json_file_is_rejected(folder: Path, path: str) -> None:
    (folder / path).write_text("{")
    assert refusal(folder).startswith("--model.teacher: ")


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt"])
def test_an_incomplete_tokenizer_is_rejected(folder: Path, name: str) -> None:
    (folder / "tokenizer" / name).unlink()
    found = f"its tokenizer cannot be used: it has neither tokenizer.json nor {name}"
    assert refusal(folder).startswith(f"--model.teacher: {found}")


def test_a_missing_variant_is_rejected(tiny_sd: str) -> None:
    message = refusal(tiny_sd, variant="fp16")
    assert message.startswith("--model.teacher: could not load the unet of")
    assert "fp16" in message
