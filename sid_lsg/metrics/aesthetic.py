"""LAION's aesthetic predictor: a head on the image embedding of CLIP ViT-L/14."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from sid_lsg.metrics.features import OPENAI, VisionFeatures, load_vision

_REMEDY = (
    "Give a Hub id or a folder with the embedding's and the head's weights in safetensors, such as "
    "shunk031/aesthetics-predictor-v2-sac-logos-ava1-l14-linearMSE."
)


class Head(nn.ModuleDict):
    """Five linear layers without activations; ImageReward's head has the same sizes and names."""

    def __init__(self, width: int) -> None:
        """Build the layers for `width` features."""
        sizes = (width, 1024, 128, 64, 16, 1)
        layers = [nn.Linear(*pair) for pair in pairwise(sizes)]
        super().__init__(dict(zip("02467", layers, strict=True)))

    def forward(self, features: Tensor) -> Tensor:
        """Map features [B, D] to numbers [B]."""
        for layer in self.values():
            features = layer(features)
        return features[:, 0]


class AestheticConfig(CLIPVisionConfig):
    """The configuration of CLIP's image network, under the predictor's name on the Hub."""

    model_type = "aesthetics_predictor"


class AestheticPredictor(CLIPVisionModelWithProjection):
    """CLIP's image network with the predictor's head as `layers`."""

    config_class = AestheticConfig

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.layers = Head(config.projection_dim)
        self.post_init()


def load_aesthetic(source: str, option: str) -> VisionFeatures:
    """Load the predictor; its features are unit embeddings.

    Args:
        source: Folder or Hub id, which may end with `@` and a revision.
        option: Name of the option that gave the source, for error messages.

    Raises:
        UsageError: If the network cannot be loaded.
    """
    problem = f"--{option}: could not load an aesthetic predictor"
    model = load_vision(AestheticPredictor, source, problem, _REMEDY)
    config = model.config
    return VisionFeatures(model, OPENAI, int(config.image_size), int(config.projection_dim))


def aesthetic(network: VisionFeatures, images: Tensor, texts: Sequence[str] = ()) -> Tensor:
    """Rate images [B, 3, S, S] in 0..255, about 1 to 10, whatever their texts: [B]."""
    embeddings = network.model(network.normalise(images)).image_embeds
    return network.model.layers(F.normalize(embeddings, dim=1))
