"""Image and text features from a CLIP model."""

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from huggingface_hub import snapshot_download
from torch import Tensor, nn

from sid_lsg.files.loading import explained, load_network
from sid_lsg.files.sources import locate
from sid_lsg.files.weights import weights_hash
from sid_lsg.images.pixels import to_uint8
from sid_lsg.metrics.resize import bicubic, fast_bicubic
from sid_lsg.teachers.tokenizers import clip_tokenizer_problem

if TYPE_CHECKING:
    from transformers import CLIPModel, CLIPTokenizer

_FILES = ["*.json", "*.txt", "*.safetensors"]
_REMEDY = (
    "Give a folder in transformers' layout with safetensors weights, or a Hub id that this machine "
    "can reach."
)


class CLIPFeatures(nn.Module):
    """A frozen CLIP model that returns projected, unnormalized embeddings of images and texts.

    Attributes:
        input_size: Side of the input images.
        dimension: Size of an embedding.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: "CLIPModel", tokenizer: "CLIPTokenizer", preprocessor: dict) -> None:
        super().__init__()
        self.model = model.requires_grad_(False).eval()
        self.tokenizer = tokenizer
        self.input_size = int(model.config.vision_config.image_size)
        self.dimension = int(model.config.projection_dim)
        for name, key in (("mean", "image_mean"), ("std", "image_std")):
            value = torch.tensor(preprocessor[key])[:, None, None]
            self.register_buffer(name, value, persistent=False)

    @classmethod
    def from_pretrained(cls, model: str, option: str = "clip") -> "CLIPFeatures":
        """Load a CLIP model in float32 from safetensors files.

        Args:
            model: Folder, Hub id or `package:...`.
            option: Name of the option that gave the model, for error messages.

        Raises:
            UsageError: If the model cannot be loaded.
        """
        from transformers import CLIPModel, CLIPTokenizer

        what = f"--{option}: could not load a CLIP model from {model!r}"
        with explained(what, _REMEDY):
            source = locate(model)
            if source.kind == "hub":
                folder = Path(snapshot_download(model, allow_patterns=_FILES))
            elif source.kind == "folder":
                folder = source.path
            else:
                raise FileNotFoundError(f"there is no folder {str(source.path)!r}")
            clip = load_network(CLIPModel, folder, dtype=torch.float32)
            tokenizer = CLIPTokenizer.from_pretrained(folder)
            if problem := clip_tokenizer_problem(tokenizer, clip.config.text_config):
                raise ValueError(problem)
            preprocessor = (folder / "preprocessor_config.json").read_text(encoding="utf-8")
            return cls(clip, tokenizer, json.loads(preprocessor))

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Properties that are equal for interchangeable models."""
        return {
            "network": type(self.model).__name__,
            "weights_sha256": weights_hash(self.model.state_dict()),
            "mean": self.mean.flatten().tolist(),
            "std": self.std.flatten().tolist(),
        }

    @torch.no_grad()
    def embed(self, images: Tensor) -> Tensor:
        """Embed uint8 images [B, 3, S, S] of the model's input size: [B, D] float32.

        Images are normalized with the statistics in the model's `preprocessor_config.json`.
        """
        pixels = images.to(self.mean.device).float() / 255
        vision = self.model.vision_model(pixel_values=(pixels - self.mean) / self.std)
        return self.model.visual_projection(vision.pooler_output).float()

    def images(self, images: Tensor) -> Tensor:
        """Embed images [B, 3, H, W] in [-1, 1]; round to 8 bits and resize on their device."""
        return self.embed(fast_bicubic(to_uint8(images), self.input_size))

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """Embed texts: [B, D] float32."""
        tokens = self.tokenizer(
            list(texts), padding="max_length", truncation=True, return_tensors="pt"
        )
        text = self.model.text_model(
            input_ids=tokens.input_ids.to(self.mean.device),
            attention_mask=tokens.attention_mask.to(self.mean.device),
        )
        return self.model.text_projection(text.pooler_output).float()

    def scores(self, images: Tensor, texts: Sequence[str]) -> list[float]:
        """Return the CLIP score, in [-1, 1], of each uint8 image [B, 3, H, W] with its text."""
        embeddings = self.embed(bicubic(images, self.input_size)).double()
        return F.cosine_similarity(embeddings, self.texts(texts).double()).tolist()
