"""Scores against textbook formulas computed independently, and refusals of what cannot score."""

import json
import pickle
import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from test_networks import Trap
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from sid_lsg.errors import UsageError
from sid_lsg.images import to_uint8
from sid_lsg.metrics.evaluator import Evaluator
from sid_lsg.metrics.features import CLIPFeatures
from sid_lsg.metrics.scores import CLIPScore, ReferenceFID, load_reference, save_reference

DIMENSION = 8
MEAN, STD = [0.5, 0.4, 0.3], [0.5, 0.6, 0.7]
PROMPTS = ["a red cat", "two dogs on a log", ""]


def make_clip(folder: Path, tokenizer: Path) -> Path:
    """Write a random CLIP for 32x32 images with 8-dimensional embeddings."""
    shutil.copytree(tokenizer, folder)
    words = CLIPTokenizer.from_pretrained(folder)
    tower = {
        "hidden_size": 16, "intermediate_size": 32,
        "num_hidden_layers": 1, "num_attention_heads": 2,
    }  # fmt: skip
    text = tower | {
        "vocab_size": len(words),
        "bos_token_id": words.bos_token_id,
        "eos_token_id": words.eos_token_id,
        "pad_token_id": words.pad_token_id,
    }
    vision = tower | {"image_size": 32, "patch_size": 8}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=DIMENSION)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = CLIPModel(config)
    for parameter in model.parameters():
        parameter.data *= 5  # embeddings that depend visibly on what is embedded
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": MEAN, "image_std": STD})
    )
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory, tiny_sd: str) -> str:
    return str(make_clip(tmp_path_factory.mktemp("metrics") / "clip", Path(tiny_sd, "tokenizer")))


@pytest.fixture
def spoilt(clip: str, tmp_path: Path) -> Path:
    """A copy of the CLIP, to be spoilt."""
    return Path(shutil.copytree(clip, tmp_path / "spoilt"))


@pytest.fixture
def reference(tmp_path: Path) -> str:
    save_reference(tmp_path / "reference.safetensors", normal(40, seed=1), {})
    return str(tmp_path / "reference.safetensors")


def normal(count: int, seed: int, dimension: int = DIMENSION) -> Tensor:
    """Draw correlated features whose mean is not zero."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(dimension, dimension, generator=generator, dtype=torch.float64)
    shift = 3 * torch.randn(dimension, generator=generator, dtype=torch.float64)
    return torch.randn(count, dimension, generator=generator, dtype=torch.float64) @ mixing + shift


def textbook_fid(a: Tensor, b: Tensor) -> float:
    """|mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a^(1/2) S_b S_a^(1/2))^(1/2)), by numpy in float64."""
    x, y = a.double().numpy(), b.double().numpy()
    s_x, s_y = np.cov(x, rowvar=False), np.cov(y, rowvar=False)

    def root(matrix: np.ndarray) -> np.ndarray:
        values, vectors = np.linalg.eigh(matrix)
        return (vectors * np.sqrt(values.clip(min=0))) @ vectors.T

    half = root(s_x)
    cross = root(half @ s_y @ half)
    distance = np.square(x.mean(0) - y.mean(0)).sum()
    return float(distance + np.trace(s_x) + np.trace(s_y) - 2 * np.trace(cross))


def fid_against(reference: Tensor) -> ReferenceFID:
    return ReferenceFID(reference.mean(0), reference.T.cov(), len(reference))


# ---------------------------------------------------------------------- FID


@pytest.mark.parametrize(("count", "dimension"), [(200, 8), (50, 32), (5, 8), (2, 3)])
def test_fid_is_the_textbook_formula(count: int, dimension: int) -> None:
    reference = normal(300, seed=1, dimension=dimension)
    features = normal(count, seed=2, dimension=dimension)
    fid = fid_against(reference)
    fid.update(features)
    assert float(fid.compute()) == pytest.approx(textbook_fid(reference, features), rel=1e-6)
    assert fid.compute().dtype == torch.float64


def test_fid_of_the_reference_itself_is_zero() -> None:
    reference = normal(100, seed=1)
    fid = fid_against(reference)
    fid.update(reference)
    assert abs(float(fid.compute())) < 1e-8 * float(reference.T.cov().trace())


def test_fid_of_float32_features_does_not_suffer_from_a_large_mean() -> None:
    reference, features = normal(100, seed=1) + 1000, (normal(100, seed=2) + 1000).float()
    fid = fid_against(reference)
    fid.update(features)
    assert float(fid.compute()) == pytest.approx(textbook_fid(reference, features), rel=1e-6)


def test_fid_accumulates_over_uneven_batches() -> None:
    reference, features = normal(100, seed=1), normal(60, seed=2)
    fid = fid_against(reference)
    for part in features.split([1, 7, 30, 22]):
        fid.update(part)
    assert float(fid.compute()) == pytest.approx(textbook_fid(reference, features), rel=1e-9)


def test_reset_forgets_the_images_and_keeps_the_reference() -> None:
    reference, features = normal(100, seed=1), normal(60, seed=2)
    fid = fid_against(reference)
    fid.update(normal(70, seed=3))
    fid.compute()
    fid.reset()
    fid.update(features)
    assert float(fid.compute()) == pytest.approx(textbook_fid(reference, features), rel=1e-9)


def test_a_stored_reference_is_mean_covariance_and_count(tmp_path: Path) -> None:
    path = tmp_path / "reference.safetensors"
    reference, features = normal(30, seed=1).float(), normal(20, seed=2)
    save_reference(path, reference, {"images": "some"})
    stored, exact = load_file(path), reference.double().numpy()
    assert {value.dtype for value in stored.values()} == {torch.float64}
    np.testing.assert_allclose(stored["mean"], exact.mean(0), rtol=1e-12)
    np.testing.assert_allclose(stored["covariance"], np.cov(exact, rowvar=False), rtol=1e-10)
    fid = load_reference(str(path))
    fid.update(features)
    assert float(fid.compute()) == pytest.approx(textbook_fid(reference, features), rel=1e-6)


# ---------------------------------------------------------------------- CLIP


def test_the_clip_score_is_the_mean_cosine() -> None:
    images, texts = normal(20, seed=1), normal(20, seed=2)
    score = CLIPScore()
    for image, text in zip(images.split([3, 16, 1]), texts.split([3, 16, 1]), strict=True):
        score.update(image.float(), text.float())
    x, y = images.numpy(), texts.numpy()
    cosines = (x * y).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)
    assert float(score.compute()) == pytest.approx(cosines.mean(), rel=1e-6)
    score.reset()
    score.update(images, 7 * images)
    assert float(score.compute()) == pytest.approx(1)


def noise_images(count: int, size: int) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(5)) / 2


def test_features_are_transformers_own(clip: str) -> None:
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
def test_images_are_resized_as_pil_does(clip: str, size: int) -> None:
    features, images = CLIPFeatures.from_pretrained(clip), noise_images(2, size) / 2
    seen: list[Tensor] = []
    features.model.vision_model.register_forward_pre_hook(
        lambda _, __, kwargs: seen.append(kwargs["pixel_values"]), with_kwargs=True
    )
    features.images(images)
    mean, std = (torch.tensor(value)[:, None, None] for value in (MEAN, STD))
    for ours, pixels in zip(seen[0] * std + mean, to_uint8(images), strict=True):
        picture = Image.fromarray(pixels.permute(1, 2, 0).numpy())
        resized = np.asarray(picture.resize((32, 32), Image.Resampling.BICUBIC)) / 255
        np.testing.assert_allclose(ours.permute(1, 2, 0), resized, atol=1.25 / 255)


def test_the_clip_is_frozen_and_in_float32(spoilt: Path) -> None:
    weights = {
        name: value.half() for name, value in load_file(spoilt / "model.safetensors").items()
    }
    save_file(weights, spoilt / "model.safetensors", {"format": "pt"})
    features = CLIPFeatures.from_pretrained(str(spoilt))
    assert {(p.dtype, p.requires_grad) for p in features.parameters()} == {(torch.float32, False)}
    assert not features.model.training


# ---------------------------------------------------------------------- evaluator


class Seeded:
    """Samples images from seeds and prompts, and remembers what it was asked for."""

    def __init__(self) -> None:
        self.calls: list[tuple[list[str], list[int]]] = []

    def __call__(self, prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        self.calls.append((list(prompts), list(seeds)))
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        images = [torch.randn(3, 32, 32, generator=generator) for generator in generators]
        return torch.stack(images) / 2 + torch.tensor([len(p) for p in prompts]).view(-1, 1, 1, 1)


def test_scores_are_those_of_all_images_together(clip: str, reference: str) -> None:
    evaluator, sampler = Evaluator(clip, reference, num_images=10, batch_size=4), Seeded()
    scores = evaluator.evaluate(sampler, PROMPTS, "cpu")
    prompts = [PROMPTS[i % 3] for i in range(10)]
    parts = [slice(0, 4), slice(4, 8), slice(8, 10)]
    assert sampler.calls == [(prompts[part], list(range(10))[part]) for part in parts]

    features = CLIPFeatures.from_pretrained(clip)
    images, texts = features.images(Seeded()(prompts, range(10))), features.texts(prompts)
    assert scores.fid == pytest.approx(textbook_fid(normal(40, seed=1), images), rel=1e-5)
    assert scores.clip == pytest.approx(float(F.cosine_similarity(images, texts).mean()), rel=1e-4)
    assert scores.seconds_per_image > 0


def test_scores_do_not_depend_on_the_batch_size(clip: str, reference: str) -> None:
    one, some, all_at_once = (
        Evaluator(clip, reference, 10, size).evaluate(Seeded(), PROMPTS, "cpu")
        for size in (1, 3, 64)
    )
    assert one[:2] == pytest.approx(all_at_once[:2], rel=1e-4)
    assert some[:2] == pytest.approx(all_at_once[:2], rel=1e-4)


def test_an_evaluator_can_be_used_again(clip: str, reference: str) -> None:
    evaluator = Evaluator(clip, reference, 6, 3)
    first = evaluator.evaluate(Seeded(), PROMPTS, "cpu")
    other = evaluator.evaluate(lambda _, seeds: torch.zeros(len(seeds), 3, 32, 32), PROMPTS, "cpu")
    assert other.fid != pytest.approx(first.fid, rel=0.01)
    assert evaluator.evaluate(Seeded(), PROMPTS, "cpu")[:2] == first[:2]


def test_without_a_reference_there_is_no_fid(clip: str) -> None:
    scores = Evaluator(clip, None, 3, 3).evaluate(Seeded(), PROMPTS, "cpu")
    assert scores.fid is None
    assert -1 <= scores.clip <= 1


def test_evaluation_leaves_the_random_state_alone(clip: str, reference: str) -> None:
    def state() -> tuple[Any, ...]:
        return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002

    before = state()
    Evaluator(clip, reference, 6, 4).evaluate(Seeded(), PROMPTS, "cpu")
    assert state() == before


# ---------------------------------------------------------------------- refusals


def test_statistics_of_another_model(clip: str, tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_reference(path, normal(30, seed=1, dimension=12), {})
    with pytest.raises(UsageError) as caught:
        Evaluator(clip, str(path), 6, 3)
    message = str(caught.value)
    assert message.startswith(f"--metrics.reference: {str(path)!r} holds 12 features and")
    assert f"has {DIMENSION}. Give statistics" in message


def save_tensors(path: Path, tensors: dict[str, Tensor], **metadata: str) -> None:
    save_file(tensors, path, metadata or None)


@pytest.mark.parametrize(
    "write",
    [
        lambda path: None,
        lambda path: path.write_text("fid"),
        lambda path: path.mkdir(),
        lambda path: save_tensors(path, {"mean": torch.zeros(3)}),
        lambda path: save_tensors(path, {"mean": torch.zeros(3)}, count="7"),
        lambda path: save_tensors(
            path, {"mean": torch.zeros(3), "covariance": torch.eye(3)}, count="many"
        ),
        lambda path: save_tensors(
            path, {"mean": torch.zeros(3), "covariance": torch.eye(2)}, count="7"
        ),
    ],
    ids=["missing", "text", "folder", "no count", "no covariance", "bad count", "bad shape"],
)
def test_a_file_that_is_no_reference(tmp_path: Path, write: Callable[[Path], None]) -> None:
    path = tmp_path / "reference.safetensors"
    write(path)
    with pytest.raises(UsageError) as caught:
        load_reference(str(path), "metrics.reference")
    message = str(caught.value)
    assert message.startswith(f"--metrics.reference: {str(path)!r} does not hold")
    assert "Give a .safetensors file with `mean`, `covariance` and the image count" in message


def clip_refusal(model: str | Path) -> str:
    with pytest.raises(UsageError) as caught:
        CLIPFeatures.from_pretrained(str(model), "metrics.clip")
    message = str(caught.value)
    assert message.startswith(f"--metrics.clip: could not load a CLIP model from {str(model)!r}")
    assert "safetensors weights, or a Hub id that this machine can reach" in message
    return message


@pytest.mark.parametrize("model", ["nobody/no-such-model", "./nothing", "no/such/folder"])
def test_a_clip_that_is_not_there(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    clip_refusal(model)


def test_a_clip_that_the_package_does_not_hold() -> None:
    clip_refusal("package:demo/no-such-clip")


@pytest.mark.parametrize("name", ["model.safetensors", "preprocessor_config.json", "vocab.json"])
def test_a_clip_without_one_of_its_files(spoilt: Path, name: str) -> None:
    (spoilt / name).unlink()
    clip_refusal(spoilt)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("preprocessor_config.json", '{"image_std": [1, 1, 1]}'),
        ("preprocessor_config.json", "{"),
        ("model.safetensors", "version https://git-lfs.github.com/spec/v1\noid sha256:0a\n"),
    ],
)
def test_a_clip_with_a_spoilt_file(spoilt: Path, name: str, text: str) -> None:
    (spoilt / name).write_text(text)
    clip_refusal(spoilt)


def test_a_clip_of_another_shape_than_its_config(spoilt: Path) -> None:
    config = json.loads((spoilt / "config.json").read_text())
    (spoilt / "config.json").write_text(json.dumps(config | {"projection_dim": 9}))
    clip_refusal(spoilt)


def test_a_missing_weight_is_not_made_up(spoilt: Path) -> None:
    weights = load_file(spoilt / "model.safetensors")
    del weights["visual_projection.weight"]
    save_file(weights, spoilt / "model.safetensors", {"format": "pt"})
    clip_refusal(spoilt)


def test_a_pickled_clip_is_never_opened(spoilt: Path, tmp_path: Path) -> None:
    (spoilt / "model.safetensors").unlink()
    (spoilt / "pytorch_model.bin").write_bytes(pickle.dumps(Trap(tmp_path / "unpickled")))
    clip_refusal(spoilt)
    assert not (tmp_path / "unpickled").exists()
