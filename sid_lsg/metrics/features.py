"""Networks that compute features of images: CLIP and DINOv2."""

import json
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sid_lsg.files.loading import explained, load_network
from sid_lsg.files.weights import weights_hash
from sid_lsg.images.pixels import to_uint8
from sid_lsg.metrics.pretrained import folder_of
from sid_lsg.metrics.resize import bicubic, fast_bicubic
from sid_lsg.networks.precision import tf32
from sid_lsg.teachers.tokenizers import clip_tokenizer_problem

if TYPE_CHECKING:
    from transformers import CLIPModel, CLIPTokenizer

OPENAI = {  # of CLIP's published models
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
NETWORK_FILES = ("*.json", "*.txt", "*.safetensors")
_REMEDY = (
    "Give a folder in transformers' layout with safetensors weights, or a Hub id that this machine "
    "can reach."
)


class VisionFeatures(nn.Module):
    """A frozen network of images that transformers loads.

    Attributes:
        input_size: Side of the input images.
        dimension: Number of features.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: Any, preprocessor: dict[str, Any], size: int, dimension: int) -> None:
        super().__init__()
        self.model = model.requires_grad_(False).eval()
        self.input_size, self.dimension = size, dimension
        for name, key in (("mean", "image_mean"), ("std", "image_std")):
            value = torch.tensor(preprocessor[key])[:, None, None]
            self.register_buffer(name, value, persistent=False)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Properties that are equal for interchangeable networks."""
        return {
            "network": type(self.model).__name__,
            "weights_sha256": weights_hash(self.model.state_dict()),
            "mean": self.mean.flatten().tolist(),
            "std": self.std.flatten().tolist(),
        }

    def normalise(self, images: Tensor) -> Tensor:
        """Normalize images [B, 3, H, W] in 0..255, uint8 or float32, on the network's device."""
        return (images.to(self.mean.device).float() / 255 - self.mean) / self.std

    @torch.no_grad()
    def embed(self, images: Tensor) -> Tensor:
        """Compute the features [B, D] float32 of images [B, 3, S, S] in 0..255."""
        return self.model(self.normalise(images)).pooler_output.float()


class CLIPFeatures(VisionFeatures):
    """A frozen CLIP model that returns projected, unnormalized embeddings of images and texts."""

    def __init__(self, model: "CLIPModel", tokenizer: "CLIPTokenizer", preprocessor: dict) -> None:
        size, dimension = model.config.vision_config.image_size, model.config.projection_dim
        super().__init__(model, preprocessor, int(size), int(dimension))
        self.tokenizer = tokenizer

    @classmethod
    def from_pretrained(
        cls, model: str, option: str = "clip", preprocessor: dict[str, Any] | None = None
    ) -> "CLIPFeatures":
        """Load a CLIP model in float32 from safetensors files.

        Args:
            model: Folder, `package:...` or Hub id, which may end with `@` and a revision.
            option: Name of the option that gave the model, for error messages.
            preprocessor: Its `image_mean` and `image_std`; None reads preprocessor_config.json.

        Raises:
            UsageError: If the model cannot be loaded.
        """
        from transformers import CLIPModel, CLIPTokenizer

        what = f"--{option}: could not load a CLIP model from {model!r}"
        with explained(what, _REMEDY):
            folder = folder_of(model, *NETWORK_FILES)
            clip = load_network(CLIPModel, folder, dtype=torch.float32)
            tokenizer = CLIPTokenizer.from_pretrained(folder)
            if problem := clip_tokenizer_problem(tokenizer, clip.config.text_config):
                raise ValueError(problem)
            if preprocessor is None:
                text = (folder / "preprocessor_config.json").read_text(encoding="utf-8")
                preprocessor = json.loads(text)
            return cls(clip, tokenizer, preprocessor)

    @torch.no_grad()
    def embed(self, images: Tensor) -> Tensor:
        """Embed images [B, 3, S, S] in 0..255 of the model's input size: [B, D] float32."""
        vision = self.model.vision_model(pixel_values=self.normalise(images))
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

    @torch.no_grad()
    @tf32(False)  # whatever the run allows, as all scores
    def scores(self, images: Tensor, texts: Sequence[str]) -> list[float]:
        """Return the CLIP score, in [-1, 1], of each uint8 image [B, 3, H, W] with its text."""
        embeddings = self.embed(bicubic(images, self.input_size)).double()
        return F.cosine_similarity(embeddings, self.texts(texts).double()).tolist()


def load_vision(kind: Any, source: str, problem: str, remedy: str) -> Any:
    """Load a network of images in float32 from safetensors files.

    Args:
        kind: Its class in transformers.
        source: Folder or Hub id, which may end with `@` and a revision.
        problem: What to say if it cannot be loaded, before its source.
        remedy: What to do then.

    Raises:
        UsageError: If the network cannot be loaded.
    """
    with explained(f"{problem} from {source!r}", remedy):
        return load_network(kind, folder_of(source, *NETWORK_FILES), dtype=torch.float32)


def load_dinov2(source: str, option: str) -> VisionFeatures:
    """Load DINOv2 for images of 224 pixels; the features are the class token after the last norm.

    Args:
        source: Folder or Hub id, which may end with `@` and a revision.
        option: Name of the option that gave the source, for error messages.

    Raises:
        UsageError: If the network cannot be loaded.
    """
    from transformers import Dinov2Model

    model = load_vision(Dinov2Model, source, f"--{option}: could not load DINOv2", _REMEDY)
    size, patch = 224, int(model.config.patch_size)
    positions = model.embeddings.position_embeddings
    positions.data = _interpolated(positions.data, size // patch)
    return VisionFeatures(model, IMAGENET, size, int(model.config.hidden_size))


def _interpolated(positions: Tensor, side: int) -> Tensor:
    """Resize position embeddings [1, 1 + N, D] to `side` x `side` patches as DINOv2's code does.

    Its scale is that of `side` + 0.1 patches, unlike that of transformers.
    """
    whole, patches = positions[:, :1], positions[:, 1:]
    own = round(patches.shape[1] ** 0.5)
    if own == side:
        return positions
    grid = patches.unflatten(1, (own, own)).permute(0, 3, 1, 2)
    scale = (side + 0.1) / own
    grid = F.interpolate(grid, scale_factor=(scale, scale), mode="bicubic")
    return torch.cat([whole, grid.flatten(2).mT], 1)
