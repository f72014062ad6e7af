"""Compare preference scores with tiny independent implementations of the official networks.

The reference networks below use plain torch and the official module names, so their state dicts
have the format of the official files.
"""

import hashlib
import html
import json
import pickle
import random
import shutil
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import BertTokenizer, CLIPConfig, CLIPModel, CLIPTokenizer

import sid_lsg.metrics.pretrained
from sid_lsg.messages.errors import UsageError
from sid_lsg.metrics.preference_pixels import hpsv2_pixels, image_reward_pixels
from sid_lsg.metrics.preferences import HPSv2, ImageReward, Preference
from tests.helpers.damage import Trap

MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]
CONTEXT = 16
TEXTS = ["a red cat", "two dogs on a log", ""]
LONG = "a red cat and two dogs on a log " * 10
WORDS = ["a", "red", "cat", "and", "two", "dogs", "on", "log", "the", "##s"]
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]


# ---------------------------------------------------------------------- OpenCLIP in miniature


class Block(nn.Module):
    """A pre-norm transformer block of OpenCLIP."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        parts = {"c_fc": nn.Linear(width, 3 * width), "c_proj": nn.Linear(3 * width, width)}
        self.mlp = nn.ModuleDict(parts)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, attn_mask=mask, need_weights=False)[0]
        return x + self.mlp["c_proj"](F.gelu(self.mlp["c_fc"](self.ln_2(x))))


def blocks(width: int, heads: int, count: int) -> nn.Module:
    return nn.ModuleDict({"resblocks": nn.ModuleList(Block(width, heads) for _ in range(count))})


class Visual(nn.Module):
    """OpenCLIP's ViT for 28x28 images in patches of 14, with heads of 80 as in ViT-H-14."""

    def __init__(self, width: int = 160, dimension: int = 24) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 14, 14, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(width))
        self.positional_embedding = nn.Parameter(torch.randn(5, width))
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = blocks(width, width // 80, 2)
        self.proj = nn.Parameter(torch.randn(width, dimension))

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.conv1(pixels).flatten(2).mT
        whole = self.class_embedding.expand(len(pixels), 1, -1)
        x = self.ln_pre(torch.cat([whole, patches], 1) + self.positional_embedding)
        for block in self.transformer["resblocks"]:
            x = block(x)
        return self.ln_post(x[:, 0]) @ self.proj


class OpenCLIP(nn.Module):
    def __init__(self, vocabulary: int, width: int = 128, dimension: int = 24) -> None:
        super().__init__()
        self.visual = Visual(dimension=dimension)
        self.transformer = blocks(width, width // 64, 3)
        self.token_embedding = nn.Embedding(vocabulary, width)
        self.positional_embedding = nn.Parameter(torch.randn(CONTEXT, width))
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.randn(width, dimension))
        self.logit_scale = nn.Parameter(torch.tensor(4.0))

    def text(self, ids: Tensor) -> Tensor:
        mask = torch.full((CONTEXT, CONTEXT), -torch.inf).triu(1)
        x = self.token_embedding(ids) + self.positional_embedding
        for block in self.transformer["resblocks"]:
            x = block(x, mask)
        return self.ln_final(x)[torch.arange(len(ids)), ids.argmax(1)] @ self.text_projection

    def forward(self, pixels: Tensor, ids: Tensor) -> Tensor:
        image, text = self.visual(pixels), self.text(ids)
        return (image / image.norm(dim=1, keepdim=True) * text / text.norm(dim=1)[:, None]).sum(1)


# ---------------------------------------------------------------------- ImageReward in miniature


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, keep: Tensor | None = None) -> Tensor:
    """Attend in heads; q [B, N, D], k and v [B, M, D], keep [B, M] bool."""
    q, k, v = (t.unflatten(2, (heads, -1)) for t in (q, k, v))
    logits = torch.einsum("bnhd,bmhd->bhnm", q, k) / q.shape[-1] ** 0.5
    if keep is not None:
        logits = logits.masked_fill(~keep[:, None, None], -torch.inf)
    return torch.einsum("bhnm,bmhd->bnhd", logits.softmax(3), v).flatten(2)


class VisionBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = width // 64
        self.norm1, self.norm2 = nn.LayerNorm(width, 1e-6), nn.LayerNorm(width, 1e-6)
        qkv, proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.attn = nn.ModuleDict({"qkv": qkv, "proj": proj})
        fc1, fc2 = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.mlp = nn.ModuleDict({"fc1": fc1, "fc2": fc2})

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.attn["qkv"](self.norm1(x)).chunk(3, 2)
        x = x + self.attn["proj"](attend(q, k, v, self.heads))
        return x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))


class VisualEncoder(nn.Module):
    """BLIP's ViT for 32x32 images in patches of 16."""

    def __init__(self, width: int = 192) -> None:
        super().__init__()
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, 16, 16)})
        self.cls_token = nn.Parameter(torch.randn(1, 1, width))
        self.pos_embed = nn.Parameter(torch.randn(1, 5, width))
        self.blocks = nn.ModuleList(VisionBlock(width) for _ in range(2))
        self.norm = nn.LayerNorm(width, 1e-6)

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.patch_embed["proj"](pixels).flatten(2).mT
        x = torch.cat([self.cls_token.expand(len(pixels), -1, -1), patches], 1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class Attention(nn.Module):
    """BERT's self- or cross-attention, followed by residual and norm."""

    def __init__(self, width: int, seen: int) -> None:
        super().__init__()
        sizes = {"query": width, "key": seen, "value": seen}
        self.self = nn.ModuleDict({name: nn.Linear(size, width) for name, size in sizes.items()})
        self.output = output(width, width)
        self.heads = width // 64

    def forward(self, x: Tensor, seen: Tensor, keep: Tensor | None = None) -> Tensor:
        q, k, v = self.self["query"](x), self.self["key"](seen), self.self["value"](seen)
        return finish(self.output, attend(q, k, v, self.heads, keep), x)


def output(wide: int, width: int) -> nn.ModuleDict:
    return nn.ModuleDict({"dense": nn.Linear(wide, width), "LayerNorm": nn.LayerNorm(width, 1e-12)})


def finish(part: nn.ModuleDict, x: Tensor, residual: Tensor) -> Tensor:
    return part["LayerNorm"](part["dense"](x) + residual)


class TextLayer(nn.Module):
    def __init__(self, width: int, seen: int) -> None:
        super().__init__()
        self.attention, self.crossattention = Attention(width, width), Attention(width, seen)
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(width, 2 * width)})
        self.output = output(2 * width, width)

    def forward(self, x: Tensor, image: Tensor, keep: Tensor) -> Tensor:
        x = self.attention(x, x, keep)
        x = self.crossattention(x, image)
        return finish(self.output, F.gelu(self.intermediate["dense"](x)), x)


class TextEncoder(nn.Module):
    def __init__(self, vocabulary: int, width: int = 128, seen: int = 192) -> None:
        super().__init__()
        parts = {
            "word_embeddings": nn.Embedding(vocabulary, width),
            "position_embeddings": nn.Embedding(40, width),
            "LayerNorm": nn.LayerNorm(width, 1e-12),
        }
        self.embeddings = nn.ModuleDict(parts)
        self.embeddings.register_buffer("position_ids", torch.arange(40)[None])
        layers = nn.ModuleList(TextLayer(width, seen) for _ in range(3))
        self.encoder = nn.ModuleDict({"layer": layers})

    def forward(self, ids: Tensor, keep: Tensor, image: Tensor) -> Tensor:
        x = self.embeddings["word_embeddings"](ids)
        x = x + self.embeddings["position_embeddings"].weight[: ids.shape[1]]
        x = self.embeddings["LayerNorm"](x)
        for layer in self.encoder["layer"]:
            x = layer(x, image, keep)
        return x


class Reward(nn.Module):
    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.blip = nn.Module()
        self.blip.visual_encoder, self.blip.text_encoder = VisualEncoder(), TextEncoder(vocabulary)
        self.blip.vision_proj, self.blip.text_proj = nn.Linear(192, 8), nn.Linear(128, 8)
        layers = zip("02467", [(128, 12), (12, 8), (8, 6), (6, 4), (4, 1)], strict=True)
        head = OrderedDict((number, nn.Linear(*size)) for number, size in layers)
        self.mlp = nn.ModuleDict({"layers": nn.Sequential(head)})

    def forward(self, pixels: Tensor, ids: Tensor, keep: Tensor) -> Tensor:
        read = self.blip.text_encoder(ids, keep, self.blip.visual_encoder(pixels))
        return (self.mlp["layers"](read[:, 0])[:, 0] - 0.16717362830052426) / 1.0333394966054072


# ---------------------------------------------------------------------- fixtures


def spread(make: Callable[[], nn.Module]) -> nn.Module:
    """Build a network with random weights, including biases and norms."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make()
        for parameter in model.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model.requires_grad_(False).eval()


class Case:
    """A score, its reference network, the reference's file, and how to load it."""

    def __init__(
        self, kind: type[Preference], reference: nn.Module, path: Path, tokenizer: Path
    ) -> None:
        self.kind, self.reference, self.path, self.tokenizer = kind, reference, path, tokenizer
        self.name = kind.name

    @property
    def weights(self) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in self.reference.state_dict().items()}

    def load(self, source: str | Path | None = None) -> Any:
        source = str(source or self.path)
        return self.kind.from_pretrained(source, f"metrics.{self.name}", str(self.tokenizer))

    def refuse(self, source: str | Path, tokenizer: str | Path | None = None) -> str:
        words = str(tokenizer or self.tokenizer)
        with pytest.raises(UsageError) as caught:
            self.kind.from_pretrained(str(source), f"metrics.{self.name}", words)
        message = str(caught.value)
        assert message.startswith(f"--metrics.{self.name}: ")
        assert ". Give " in message
        assert "\n" not in message
        return message


@pytest.fixture(scope="module")
def hpsv2(tmp_path_factory: pytest.TempPathFactory, tiny_sd: str) -> Case:
    folder, tokenizer = tmp_path_factory.mktemp("hpsv2"), Path(tiny_sd, "tokenizer")
    reference = spread(lambda: OpenCLIP(len(CLIPTokenizer.from_pretrained(tokenizer))))
    torch.save({"state_dict": reference.state_dict(), "epoch": 3}, folder / "HPS_v2.pt")
    return Case(HPSv2, reference, folder / "HPS_v2.pt", tokenizer)


@pytest.fixture(scope="module")
def image_reward(tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("image_reward")
    (folder / "bert").mkdir()
    (folder / "bert" / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    reference = spread(lambda: Reward(len(VOCABULARY) + 2))
    torch.save(reference.state_dict(), folder / "ImageReward.pt")
    return Case(ImageReward, reference, folder / "ImageReward.pt", folder / "bert")


@pytest.fixture(scope="module", params=["hpsv2", "image_reward"])
def case(request: pytest.FixtureRequest) -> Case:
    return request.getfixturevalue(request.param)


def noise(count: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Draw images of different brightness."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 3, height, width), generator=generator)
    return (images * torch.linspace(0.3, 1, count)[:, None, None, None]).byte()


def pixels_of(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def pil_of(image: Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).numpy())


def clip_ids(tokenizer: Path, texts: list[str]) -> Tensor:
    """Tokenize as OpenCLIP: truncate to the context, keep the end token, pad with 0."""
    words, ids = CLIPTokenizer.from_pretrained(tokenizer), torch.zeros(len(texts), CONTEXT).long()
    for row, text in zip(ids, texts, strict=True):
        tokens = words(text).input_ids
        tokens = [*tokens[: CONTEXT - 1], tokens[-1]] if len(tokens) > CONTEXT else tokens
        row[: len(tokens)] = torch.tensor(tokens)
    return ids


def expected_scores(case: Case, images: Tensor, texts: list[str]) -> Tensor:
    """Score square images of the network's size with the reference."""
    pixels = (images.float() / 255 - MEAN) / STD
    if case.kind is HPSv2:
        return case.reference(pixels, clip_ids(case.tokenizer, texts))
    words = BertTokenizer.from_pretrained(case.tokenizer)
    tokens = words(texts, padding="max_length", truncation=True, max_length=35, return_tensors="pt")
    return case.reference(pixels, tokens.input_ids, tokens.attention_mask.bool())


def side(case: Case) -> int:
    return 28 if case.kind is HPSv2 else 32


# ---------------------------------------------------------------------- scores


def test_scores_equal_those_of_the_official_networks(case: Case) -> None:
    texts = [*TEXTS, LONG]
    images = noise(4, side(case), side(case))
    scores = case.load().score(images, texts)
    assert (scores.dtype, scores.shape) == (torch.float32, (4,))
    expected = expected_scores(case, images, texts)
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=1e-5)
    assert expected.std() > 0.01  # the scores differ


def test_texts_are_tokenized_like_the_official_code(case: Case) -> None:
    images = noise(1, side(case), side(case))
    preference = case.load()
    same = [preference.score(images, [text]) for text in ("a red cat", "A  RED\ncat ")]
    torch.testing.assert_close(*same)
    words = (LONG.split() * 2)[: 33 if case.kind is ImageReward else 60]
    cut, whole = (preference.score(images, [" ".join(w)]) for w in (words, [*words, "cat"]))
    torch.testing.assert_close(cut, whole)  # text beyond the limit is truncated
    shorter = preference.score(images, [" ".join(words[:3])])
    assert (shorter - whole).abs() > 1e-4


def test_hpsv2_unescapes_texts(hpsv2: Case) -> None:
    preference, images = hpsv2.load(), noise(1, 28, 28)
    twice = html.escape(html.escape("cats & dogs"))
    torch.testing.assert_close(
        preference.score(images, [twice]), preference.score(images, ["cats & dogs"])
    )


def test_the_padding_token_does_not_matter_to_hpsv2(hpsv2: Case) -> None:
    preference, images = hpsv2.load(), noise(3, 28, 28)
    scores = preference.score(images, TEXTS)
    for pad in ("a", "<|endoftext|>"):
        preference.tokenizer.pad_token = pad
        torch.testing.assert_close(preference.score(images, TEXTS), scores)


def test_scores_depend_on_image_and_text(case: Case) -> None:
    preference = case.load()
    one, other = noise(2, side(case), side(case)).split(1)
    score = preference.score(one, ["a red cat"])
    assert (preference.score(one, ["two dogs"]) - score).abs() > 1e-3
    assert (preference.score(other, ["a red cat"]) - score).abs() > 1e-3


def test_a_score_does_not_depend_on_the_other_samples(case: Case) -> None:
    preference, images = case.load(), noise(3, 40, 50)
    together = preference.score(images, TEXTS)
    for index, text in enumerate(TEXTS):
        alone = preference.score(images[index : index + 1], [text])
        torch.testing.assert_close(alone[0], together[index], atol=1e-5, rtol=1e-5)


def test_scores_repeat_and_change_no_random_or_training_state(case: Case) -> None:
    def state() -> tuple[Any, ...]:
        return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002

    before, images = state(), noise(3, 40, 30)
    preference = case.load()
    first = preference.score(images, TEXTS)
    holder = nn.ModuleList([preference]).train()  # as a LightningModule's `train` does
    with torch.autocast("cpu", torch.bfloat16):
        again = preference.score(images, TEXTS)
    assert torch.equal(first, again)
    assert state() == before
    assert not first.requires_grad
    assert not any(module.training for module in holder[0].modules())
    parameters = list(preference.parameters())
    assert {(p.dtype, p.requires_grad) for p in parameters} == {(torch.float32, False)}


@pytest.mark.parametrize(
    ("images", "texts"),
    [
        (torch.zeros(2, 3, 8, 8), ["a", "b"]),
        (torch.zeros(2, 1, 8, 8).byte(), ["a", "b"]),
        (torch.zeros(3, 8, 8).byte(), ["a"]),
        (torch.zeros(2, 3, 8, 8).byte(), ["a"]),
    ],
)
def test_images_must_be_uint8_and_as_many_as_texts(
    image_reward: Case, images: Tensor, texts: list[str]
) -> None:
    with pytest.raises(ValueError, match="not uint8 B3HW|1 texts"):
        image_reward.load().score(images, texts)


# ---------------------------------------------------------------------- preprocessing

SIZES = [
    (28, 28),
    (64, 64),
    (20, 20),
    (50, 28),
    (28, 45),
    (61, 90),
    (90, 61),
    (9, 7),
    (28, 31),
    (30, 50),
]


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_hpsv2_fits_and_pads_images(height: int, width: int) -> None:
    """Pillow resamples the channels in float, without rounding or clipping."""
    images = noise(2, height, width)
    prepared = hpsv2_pixels(images, 28)
    assert (prepared.dtype, prepared.shape) == (torch.float32, (2, 3, 28, 28))
    longest = max(height, width)
    shape = round(width * (28 / longest)), round(height * (28 / longest))
    left, top = (28 - shape[0]) // 2, (28 - shape[1]) // 2
    expected = np.zeros((2, 3, 28, 28), np.float32)
    for image, canvas in zip(images.numpy(), expected, strict=True):
        for plane, target in zip(image.astype(np.float32) / 255, canvas, strict=True):
            resized = np.asarray(Image.fromarray(plane).resize(shape, Image.Resampling.BICUBIC))
            target[top : top + shape[1], left : left + shape[0]] = resized
    np.testing.assert_allclose(prepared, expected, atol=2e-6)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_image_reward_resizes_and_crops_images(height: int, width: int) -> None:
    images = noise(2, height, width)
    prepared = image_reward_pixels(images, 28)
    assert (prepared.dtype, prepared.shape) == (torch.float32, (2, 3, 28, 28))
    for image, ours in zip(images, prepared, strict=True):
        short = min(height, width)
        shape = int(28 * width / short), int(28 * height / short)
        resized = pixels_of(pil_of(image).resize(shape, Image.Resampling.BICUBIC))
        top, left = round((shape[1] - 28) / 2.0), round((shape[0] - 28) / 2.0)
        cropped = resized[:, top:, left:][:, :28, :28]
        assert torch.equal(ours, cropped.float() / 255)


def test_images_of_any_size_are_prepared_before_they_are_scored(case: Case) -> None:
    images = noise(3, 61, 90)
    prepare = hpsv2_pixels if case.kind is HPSv2 else image_reward_pixels
    prepared = prepare(images, side(case)) * 255
    expected = expected_scores(case, prepared, TEXTS)
    scores = case.load().score(images, TEXTS)
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=1e-5)


# ---------------------------------------------------------------------- sources of weights


def test_identity_describes_the_loaded_files(case: Case) -> None:
    assert case.load().identity == {
        "source": str(case.path),
        "file": case.path.name,
        "sha256": hashlib.sha256(case.path.read_bytes()).hexdigest(),
        "tokenizer": str(case.tokenizer),
    }
    assert case.load().name == case.name


@pytest.mark.parametrize("form", ["top", "state_dict", "old", "safetensors", "half"])
@pytest.mark.slow
def test_weights_files_of_several_formats_load(case: Case, tmp_path: Path, form: str) -> None:
    path, weights = tmp_path / "weights.pt", case.weights
    if form == "top":
        torch.save(weights, path)
    elif form == "state_dict":
        torch.save({"state_dict": weights}, path)
    elif form == "old":
        torch.save(weights, path, _use_new_zipfile_serialization=False)
    elif form == "safetensors":
        path = path.with_suffix(".safetensors")
        save_file(weights, path)
    else:
        torch.save({n: v.half() if v.is_floating_point() else v for n, v in weights.items()}, path)
    images = noise(3, side(case), side(case))
    tolerance = 0.05 if form == "half" else 1e-6
    expected = case.load().score(images, TEXTS)
    preference = case.load(path)
    scores = preference.score(images, TEXTS)
    torch.testing.assert_close(scores, expected, atol=tolerance, rtol=tolerance)
    assert {p.dtype for p in preference.parameters()} == {torch.float32}


def test_the_file_may_change_after_loading(case: Case, tmp_path: Path) -> None:
    path, images = Path(shutil.copy(case.path, tmp_path / "w.pt")), noise(3, 30, 30)
    preference = case.load(path)
    expected = preference.score(images, TEXTS)
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
    assert torch.equal(preference.score(images, TEXTS), expected)


def test_a_file_on_the_hub_loads(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []

    def download(repository: str, file: str) -> str:
        asked.append((repository, file))
        return str(case.path)

    monkeypatch.setattr(sid_lsg.metrics.pretrained, "hf_hub_download", download)
    preference = case.load("hf:owner/name/folder/weights.pt")
    assert asked == [("owner/name", "folder/weights.pt")]
    assert preference.identity["source"] == "hf:owner/name/folder/weights.pt"


@pytest.fixture
def clip_folder(tmp_path: Path, tiny_sd: str) -> Path:
    """Write a random CLIP for 32x32 images in transformers' layout."""
    folder = Path(shutil.copytree(Path(tiny_sd, "tokenizer"), tmp_path / "clip"))
    words = CLIPTokenizer.from_pretrained(folder)
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    tower |= {"num_attention_heads": 2, "attention_dropout": 0.5}
    text = tower | {"vocab_size": len(words), "eos_token_id": words.eos_token_id}
    vision = tower | {"image_size": 32, "patch_size": 8}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
    spread(lambda: CLIPModel(config)).save_pretrained(folder)
    normalisation = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}  # HPSv2 does not use these
    (folder / "preprocessor_config.json").write_text(json.dumps(normalisation))
    return folder


def test_hpsv2_loads_the_transformers_layout(clip_folder: Path) -> None:
    preference, model = (
        HPSv2.from_pretrained(str(clip_folder)),
        CLIPModel.from_pretrained(clip_folder),
    )
    words, images = CLIPTokenizer.from_pretrained(clip_folder), noise(3, 32, 32)
    with torch.no_grad():
        tokens = words(TEXTS, padding=True, return_tensors="pt")
        found = model(pixel_values=(images / 255 - MEAN) / STD, **tokens)
    expected = (found.image_embeds * found.text_embeds).sum(1)
    scores = preference.score(images, TEXTS)
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=1e-5)
    whole = clip_folder / "model.safetensors"
    assert preference.identity == {
        "source": str(clip_folder),
        "file": "model.safetensors",
        "sha256": hashlib.sha256(whole.read_bytes()).hexdigest(),
        "tokenizer": str(clip_folder),
    }


def test_hpsv2_loads_several_files(clip_folder: Path) -> None:
    expected = HPSv2.from_pretrained(str(clip_folder)).score(noise(3, 32, 32), TEXTS)
    model = CLIPModel.from_pretrained(clip_folder)
    (clip_folder / "model.safetensors").unlink()
    model.save_pretrained(clip_folder, max_shard_size="20KB")
    preference = HPSv2.from_pretrained(str(clip_folder))
    assert torch.equal(preference.score(noise(3, 32, 32), TEXTS), expected)
    files = sorted(clip_folder.glob("*.safetensors"))
    assert len(files) > 1
    joined = b"".join(file.read_bytes() for file in files)
    assert preference.identity["sha256"] == hashlib.sha256(joined).hexdigest()


# ---------------------------------------------------------------------- errors


def test_objects_are_never_unpickled(case: Case, tmp_path: Path) -> None:
    mark, path = tmp_path / "unpickled", tmp_path / "weights.pt"
    for new in (True, False):
        stored = {"state_dict": case.weights, "trap": Trap(mark)}
        torch.save(stored, path, _use_new_zipfile_serialization=new)
        assert "contains objects other than tensors" in case.refuse(path)
        assert not mark.exists()
    path.write_bytes(pickle.dumps(Trap(mark)))
    assert "contains objects other than tensors" in case.refuse(path)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("write", "found"),
    [
        (lambda path: None, "there is no"),
        (lambda path: path.mkdir(), "could not load"),
        (
            lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"),
            "not a weights file",
        ),
        (lambda path: path.write_bytes(b""), "could not load"),
        (lambda path: torch.save([torch.zeros(2)], path), "it contains a list, not named tensors"),
        (lambda path: torch.save({}, path), "it contains a dict, not named tensors"),
        (lambda path: torch.save({"state_dict": {"a": 1}}, path), "its 'a' is a int, not a tensor"),
        (lambda path: torch.save({"a": torch.zeros(2)}, path), "it lacks"),
    ],
    ids=["missing", "folder", "LFS", "empty", "list", "nothing", "number", "other"],
)
def test_other_files_are_rejected(
    case: Case, tmp_path: Path, write: Callable[[Path], None], found: str
) -> None:
    path = tmp_path / "weights.pt"
    write(path)
    assert found in case.refuse(path)


def test_a_truncated_file_is_rejected(case: Case, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    path.write_bytes(case.path.read_bytes()[:100_000])
    case.refuse(path)


@pytest.mark.slow
def test_every_weight_is_required_and_its_shape_checked(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: dict[str, torch.Tensor] = {}  # the file's content, without the time to write and read it
    monkeypatch.setattr("sid_lsg.metrics.preferences.read_weights", lambda _: dict(found))
    unused = ("position_ids", "vision_proj", "text_proj")
    names = [n for n in case.weights if not any(u in n.split(".") for u in unused)]
    for name in names:
        found = {n: value for n, value in case.weights.items() if n != name}
        assert f"it lacks {name}" in case.refuse(case.path)
    for name in names:
        wrong = torch.zeros(*(size + 3 for size in case.weights[name].shape), 2)
        found = case.weights | {name: wrong}
        assert name.rpartition(".")[0].split(".")[0] in case.refuse(case.path)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("hpsv2", "visual.attn_pool.query"),
        ("hpsv2", "transformer.resblocks.0.ls_1.gamma"),
        ("image_reward", "blip.visual_encoder.blocks.0.attn.extra"),
        ("image_reward", "blip.text_encoder.pooler.dense.weight"),
        ("image_reward", "mlp.layers.9.weight"),
    ],
)
def test_an_unknown_weight_is_rejected(
    kind: str, name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    case: Case = request.getfixturevalue(kind)
    torch.save(case.weights | {name: torch.zeros(2, 5)}, tmp_path / "w.pt")
    assert f"it contains {name} of shape [2, 5], which this model does not have" in case.refuse(
        tmp_path / "w.pt"
    )


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_named(case: Case, tmp_path: Path, value: float) -> None:
    name, weight = next(iter(case.weights.items()))
    torch.save(case.weights | {name: torch.full_like(weight, value)}, tmp_path / "w.pt")
    assert f"its weight {name} is not finite" in case.refuse(tmp_path / "w.pt")


def test_shapes_that_do_not_fit_are_named(case: Case, tmp_path: Path) -> None:
    name = "transformer.resblocks.1.attn.in_proj_bias"
    name = name if case.kind is HPSv2 else "mlp.layers.2.weight"
    torch.save(case.weights | {name: torch.zeros(8, 13)}, tmp_path / "w.pt")
    assert f"its {name} of shape [8, 13] does not fit the rest" in case.refuse(tmp_path / "w.pt")


def test_a_clip_with_other_heads_is_not_hpsv2(hpsv2: Case, tmp_path: Path) -> None:
    weights = hpsv2.weights | {"visual.conv1.weight": torch.zeros(1024, 3, 14, 14)}
    torch.save(weights, tmp_path / "w.pt")
    assert "its width of 1024 is not a multiple of the attention head width 80" in hpsv2.refuse(
        tmp_path / "w.pt"
    )


@pytest.mark.parametrize(
    "name", ["nobody/no-such-model", "./nothing", "hf:nobody/no/such.pt", "hf:x"]
)
def test_a_missing_model_is_rejected(
    case: Case, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert f"from {name!r} (" in case.refuse(name)


def test_a_missing_tokenizer_is_rejected(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        UsageError, match="could not load the tokenizer '.*Give a folder, or .* as `tokenizer`"
    ):
        case.kind.from_pretrained(str(case.path))  # type: ignore[attr-defined]
    assert "could not load the tokenizer" in case.refuse(case.path, tmp_path / "nothing")
    # transformers builds a tokenizer from an empty folder without an error.
    assert "does not match the weights" in case.refuse(case.path, tmp_path)


def test_a_tokenizer_of_another_model_is_rejected(
    hpsv2: Case, image_reward: Case, tmp_path: Path
) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join(VOCABULARY[:-1]) + "\n")
    message = image_reward.refuse(image_reward.path, tmp_path)
    assert "(14 tokens) does not match the weights (17 tokens)" in message
    words = CLIPTokenizer.from_pretrained(hpsv2.tokenizer)
    size, end = len(words), words.eos_token_id
    words.add_tokens(["another"])
    words.save_pretrained(tmp_path / "clip")
    message = hpsv2.refuse(hpsv2.path, tmp_path / "clip")
    assert f"({size + 1} tokens, end token {end}) does not match" in message
    assert f"the weights ({size} tokens, end token {end})" in message


def test_another_end_token_is_rejected(clip_folder: Path) -> None:
    config = json.loads((clip_folder / "config.json").read_text())
    for end in (2, 7):
        config["text_config"]["eos_token_id"] = end
        (clip_folder / "config.json").write_text(json.dumps(config))
        if end == 2:
            HPSv2.from_pretrained(str(clip_folder))
            continue
        with pytest.raises(UsageError, match="eos_token_id 536, and the config of its .* 7"):
            HPSv2.from_pretrained(str(clip_folder))


def test_a_folder_without_weights_is_rejected(clip_folder: Path, image_reward: Case) -> None:
    weights = load_file(clip_folder / "model.safetensors")
    del weights["visual_projection.weight"]
    save_file(weights, clip_folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UsageError, match="--hpsv2: could not load .* lack visual_projection"):
        HPSv2.from_pretrained(str(clip_folder))
    assert "it does not name a weights file" in image_reward.refuse(clip_folder)
