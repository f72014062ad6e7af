"""CLIP features equal transformers', and unloadable models are rejected."""

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPModel

from sid_lsg.images.pixels import to_uint8
from sid_lsg.messages.errors import UsageError
from sid_lsg.metrics.features import CLIPFeatures
from sid_lsg.metrics.pretrained import folder_of
from tests.helpers.damage import Trap
from tests.helpers.embedders import DIMENSION, MEAN, STD, make_clip

PROMPTS = ["a red cat", "two dogs on a log", ""]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory, tiny_sd: str) -> str:
    return str(make_clip(tmp_path_factory.mktemp("metrics") / "clip", Path(tiny_sd, "tokenizer")))


@pytest.fixture
def damaged(clip: str, tmp_path: Path) -> Path:
    """Return a copy of the CLIP folder that a test may damage."""
    return Path(shutil.copytree(clip, tmp_path / "damaged"))


def noise_images(count: int, size: int) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(5)) / 2


def test_features_equal_transformers(clip: str) -> None:
    features, model = CLIPFeatures.from_pretrained(clip), CLIPModel.from_pretrained(clip)
    images = noise_images(3, 32)
    mean, std = (torch.tensor(value)[:, None, None] for value in (MEAN, STD))
    tokens = features.tokenizer(PROMPTS, padding=True, return_tensors="pt")
    pixels = (to_uint8(images) / 255 - mean) / std
    with torch.no_grad():
        expected = model(**tokens, pixel_values=pixels)
    assert features.dimension == DIMENSION
    images_embedded, texts_embedded = features.images(images), features.texts(PROMPTS)
    torch.testing.assert_close(F.normalize(images_embedded), expected.image_embeds)
    torch.testing.assert_close(F.normalize(texts_embedded), expected.text_embeds)
    assert (F.normalize(images_embedded) - images_embedded).abs().max() > 0.1  # not normalised


@pytest.mark.parametrize("size", [64, 80, 16])
def test_images_are_resized_like_pillow(clip: str, size: int) -> None:
    features, images = CLIPFeatures.from_pretrained(clip), noise_images(2, size) / 2
    seen: list[Tensor] = []
    features.model.vision_model.register_forward_pre_hook(
        lambda _, __, kwargs: seen.append(kwargs["pixel_values"]), with_kwargs=True
    )
    features.images(images)
    mean, std = (torch.tensor(value)[:, None, None] for value in (MEAN, STD))
    for ours, pixels in zip(seen[0] * std + mean, to_uint8(images), strict=True):
        image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
        resized = np.asarray(image.resize((32, 32), Image.Resampling.BICUBIC)) / 255
        np.testing.assert_allclose(ours.permute(1, 2, 0), resized, atol=1.25 / 255)


def test_the_clip_is_frozen_and_in_float32(damaged: Path) -> None:
    weights = {
        name: value.half() for name, value in load_file(damaged / "model.safetensors").items()
    }
    save_file(weights, damaged / "model.safetensors", {"format": "pt"})
    features = CLIPFeatures.from_pretrained(str(damaged))
    assert {(p.dtype, p.requires_grad) for p in features.parameters()} == {(torch.float32, False)}
    assert not features.model.training


# ---------------------------------------------------------------------- errors


def clip_refusal(model: str | Path) -> str:
    with pytest.raises(UsageError) as caught:
        CLIPFeatures.from_pretrained(str(model), "metrics.clip")
    message = str(caught.value)
    assert message.startswith(f"--metrics.clip: could not load a CLIP model from {str(model)!r}")
    assert "safetensors weights, or a Hub id that this machine can reach" in message
    return message


@pytest.mark.parametrize("model", ["nobody/no-such-model", "./nothing", "no/such/folder"])
def test_a_missing_clip_is_rejected(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    clip_refusal(model)


def test_a_missing_package_clip_is_rejected() -> None:
    clip_refusal("package:demo/no-such-clip")


@pytest.mark.parametrize("name", ["model.safetensors", "preprocessor_config.json", "vocab.json"])
def test_a_clip_without_one_of_its_files_is_rejected(damaged: Path, name: str) -> None:
    (damaged / name).unlink()
    clip_refusal(damaged)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("preprocessor_config.json", '{"image_std": [1, 1, 1]}'),
        ("preprocessor_config.json", "{"),
        ("model.safetensors", "version https://git-lfs.github.com/spec/v1\noid sha256:0a\n"),
    ],
)
def test_a_clip_with_a_damaged_file_is_rejected(damaged: Path, name: str, text: str) -> None:
    (damaged / name).write_text(text)
    clip_refusal(damaged)


def test_a_clip_that_differs_from_its_config_is_rejected(damaged: Path) -> None:
    config = json.loads((damaged / "config.json").read_text())
    (damaged / "config.json").write_text(json.dumps(config | {"projection_dim": 9}))
    clip_refusal(damaged)


def test_a_missing_weight_is_rejected(damaged: Path) -> None:
    weights = load_file(damaged / "model.safetensors")
    del weights["visual_projection.weight"]
    save_file(weights, damaged / "model.safetensors", {"format": "pt"})
    clip_refusal(damaged)


def test_a_pickled_clip_is_never_opened(damaged: Path, tmp_path: Path) -> None:
    (damaged / "model.safetensors").unlink()
    (damaged / "pytorch_model.bin").write_bytes(pickle.dumps(Trap(tmp_path / "unpickled")))
    clip_refusal(damaged)
    assert not (tmp_path / "unpickled").exists()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_weights_that_are_not_finite_are_named(damaged: Path, value: float) -> None:
    weights = load_file(damaged / "model.safetensors")
    weights["text_projection.weight"][0, 0] = value
    save_file(weights, damaged / "model.safetensors", {"format": "pt"})
    assert "its weight text_projection.weight is not finite" in clip_refusal(damaged)


def test_a_tokenizer_of_another_vocabulary_is_rejected(damaged: Path) -> None:
    tokens = json.loads((damaged / "vocab.json").read_text())
    (damaged / "vocab.json").write_text(json.dumps(tokens | {"<more>": len(tokens)}))
    assert "its tokenizer has 538 tokens" in clip_refusal(damaged)


@pytest.mark.parametrize(
    ("source", "asked"),
    [
        ("owner/name", ("owner/name", None)),
        ("owner/name@0123abc", ("owner/name", "0123abc")),
        ("owner/name@refs/pr/2", ("owner/name", "refs/pr/2")),
    ],
)
def test_a_hub_id_may_name_a_revision(
    source: str, asked: tuple[str, str | None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[Any] = []

    def download(name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        found.append((name, revision, allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr("sid_lsg.metrics.pretrained.snapshot_download", download)
    monkeypatch.chdir(tmp_path)
    assert folder_of(source, "*.json") == tmp_path
    assert found == [(*asked, ["*.json"])]
    Path("owner", "name@0123abc").mkdir(parents=True)  # a folder takes precedence
    assert folder_of("owner/name@0123abc") == Path("owner/name@0123abc")
    assert len(found) == 1
