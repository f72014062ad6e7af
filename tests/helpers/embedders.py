"""Write tiny CLIP and Inception models with random weights."""

import json
import shutil
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

DIMENSION = 8
MEAN = [0.5, 0.4, 0.3]
STD = [0.5, 0.6, 0.7]


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
        parameter.data *= 5  # make embeddings depend clearly on their input
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": MEAN, "image_std": STD})
    )
    return folder


class StandIn(nn.Module):
    """Imitate the interface of NVIDIA's TorchScript Inception, with its own resizing."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 16, 13, stride=13), nn.AdaptiveAvgPool2d(1))

    def forward(self, img: Tensor, return_features: bool = False) -> Tensor:
        img = nn.functional.interpolate(img.float(), (299, 299))  # must not be used
        return self.layers((img - 128) / 128).flatten(1)


def write_inception(path: Path, seed: int = 0) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        torch.jit.script(StandIn()).save(str(path))
    return path
