"""ImageReward equals an independent implementation of the official network.

The reference below uses plain torch and the official module names, so its state dict has the format
of the official file.
"""

import re
import shutil
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertTokenizer

from sid_lsg.messages.errors import UsageError
from sid_lsg.metrics.image_reward import ImageReward, RewardModel
from tests.helpers.damage import Trap

MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]
LONG = "a red cat and two dogs on a log " * 10
TEXTS = ["a red cat", "two dogs on a log", "", LONG]
WORDS = ["a", "red", "cat", "and", "two", "dogs", "on", "log", "the", "##s"]
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
SIZES = (
    {"hidden_size": 192, "intermediate_size": 384, "num_hidden_layers": 2,
     "num_attention_heads": 3, "image_size": 32, "patch_size": 16},
    {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 3,
     "num_attention_heads": 2, "max_position_embeddings": 40, "vocab_size": len(VOCABULARY) + 2},
)  # fmt: skip


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
        sizes = [(128, 1024), (1024, 128), (128, 64), (64, 16), (16, 1)]
        layers = zip("02467", sizes, strict=True)
        head = OrderedDict((number, nn.Linear(*size)) for number, size in layers)
        self.mlp = nn.ModuleDict({"layers": nn.Sequential(head)})

    def forward(self, pixels: Tensor, ids: Tensor, keep: Tensor) -> Tensor:
        read = self.blip.text_encoder(ids, keep, self.blip.visual_encoder(pixels))
        return (self.mlp["layers"](read[:, 0])[:, 0] - 0.16717362830052426) / 1.0333394966054072


# ---------------------------------------------------------------------- tests


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RewardModel, "SIZES", SIZES)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.fixture(scope="module")
def reference() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Reward(len(VOCABULARY) + 2)
        for parameter in model.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model.requires_grad_(False).eval()


@pytest.fixture(scope="module")
def official(reference: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("image_reward")
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    torch.save(reference.state_dict(), folder / "ImageReward.pt")
    return folder


@pytest.fixture
def folder(official: Path, tmp_path: Path) -> Path:
    """Return a copy to damage."""
    return Path(shutil.copytree(official, tmp_path / "copy"))


def load(folder: Path | str) -> ImageReward:
    return ImageReward.from_pretrained(str(folder), "scores.image_reward")


def refuse(folder: Path | str) -> str:
    with pytest.raises(UsageError) as caught:
        load(folder)
    message = str(caught.value)
    assert re.match(r"--scores.image_reward: could not load .*Give THUDM/ImageReward", message)
    assert "\n" not in message
    return message


def test_scores_equal_those_of_the_official_network(official: Path, reference: nn.Module) -> None:
    images = torch.randint(0, 256, (4, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    images = (images * torch.linspace(0.3, 1, 4)[:, None, None, None]).byte()
    words = BertTokenizer.from_pretrained(official)
    tokens = words(TEXTS, padding="max_length", truncation=True, max_length=35, return_tensors="pt")
    pixels = (images.float() / 255 - MEAN) / STD
    expected = reference(pixels, tokens.input_ids, tokens.attention_mask.bool())
    scores = load(official).score(images, TEXTS)
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=1e-5)
    assert expected.std() > 0.01  # the scores differ


def test_half_precision_and_a_state_dict_load(folder: Path, reference: nn.Module) -> None:
    weights = {name: v.half() if v.is_floating_point() else v
               for name, v in reference.state_dict().items()}  # fmt: skip
    torch.save({"state_dict": weights}, folder / "ImageReward.pt")
    model = load(folder)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.identity["network"] == "RewardModel"


@pytest.mark.parametrize(
    ("name", "value", "found"),
    [
        ("blip.visual_encoder.blocks.0.attn.qkv.bias", None, "self_attn.qkv.bias' is absent"),
        ("mlp.layers.4.weight", torch.zeros(5, 128), r"is \[5, 128\] in it and \[64, 128\]"),
        ("blip.text_encoder.pooler.dense.weight", torch.zeros(2), "pooler.* absent from ImageR"),
        ("mlp.layers.0.bias", torch.full((1024,), torch.nan), "mlp.layers.0.bias is not finite"),
    ],
)
def test_other_weights_are_named(
    folder: Path, reference: nn.Module, name: str, value: Tensor | None, found: str
) -> None:
    weights = {k: v for k, v in reference.state_dict().items() if k != name}
    torch.save(weights | ({} if value is None else {name: value}), folder / "ImageReward.pt")
    assert re.search(found, refuse(folder))


@pytest.mark.parametrize(
    ("write", "found"),
    [
        (lambda path: path.unlink(), "No such file"),
        (lambda path: path.write_bytes(b""), "could not load"),
        (lambda path: path.write_bytes(path.read_bytes()[:100_000]), "could not load"),
        (lambda path: torch.save([torch.zeros(2)], path), "contains a list, not named tensors"),
        (lambda path: torch.save({"state_dict": {"a": 1}}, path), "its 'a' is a int, not a tensor"),
    ],
    ids=["missing", "empty", "truncated", "list", "number"],
)
def test_other_files_are_rejected(
    folder: Path, write: Callable[[Path], object], found: str
) -> None:
    write(folder / "ImageReward.pt")
    assert found in refuse(folder)


def test_objects_in_a_file_are_not_run(folder: Path, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    torch.save({"state_dict": {"a": Trap(mark)}}, folder / "ImageReward.pt")
    assert "contains objects other than tensors" in refuse(folder)
    assert not mark.exists()


def test_another_tokenizer_and_a_missing_one_are_rejected(folder: Path) -> None:
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY[:-1]) + "\n")
    assert "it has 17 tokens, and its tokenizer 14" in refuse(folder)
    (folder / "vocab.txt").unlink()
    assert "HF_HUB_OFFLINE is set" in refuse(folder)
    assert "there is no folder" in refuse("./nothing")
    assert "HF_HUB_OFFLINE is set" in refuse("nobody/nothing@main")
