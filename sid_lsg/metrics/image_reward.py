"""ImageReward: BLIP's text encoder attends to the image, and a head scores its first token.

No class of transformers loads the official file, so its weights are renamed for BLIP's parts.
"""

import re
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from transformers import (
    BertTokenizer,
    BlipTextConfig,
    BlipTextModel,
    BlipVisionConfig,
    BlipVisionModel,
)

from sid_lsg.files.loading import explained
from sid_lsg.files.weights import first_difference
from sid_lsg.metrics.aesthetic import Head
from sid_lsg.metrics.features import OPENAI, VisionFeatures
from sid_lsg.metrics.pretrained import folder_of, read_tensors

_FILE = "ImageReward.pt"
_TOKENIZER = "google-bert/bert-base-uncased@86b5e0934494bd15c9632b12f734a8a67f723594"
_WORDS = ("vocab.txt", "tokenizer*.json")
_REMEDY = (
    f"Give THUDM/ImageReward, or a folder with its {_FILE} and, without a connection, the "
    "vocab.txt of google-bert/bert-base-uncased."
)
_VISION = {  # names in the file, and in transformers
    r"^cls_token$": "embeddings.class_embedding",
    r"^pos_embed$": "embeddings.position_embedding",
    r"^patch_embed\.proj\.": "embeddings.patch_embedding.",
    r"^blocks\.(\d+)\.norm(\d)\.": r"encoder.layers.\1.layer_norm\2.",
    r"^blocks\.(\d+)\.attn\.qkv\.": r"encoder.layers.\1.self_attn.qkv.",
    r"^blocks\.(\d+)\.attn\.proj\.": r"encoder.layers.\1.self_attn.projection.",
    r"^blocks\.(\d+)\.mlp\.": r"encoder.layers.\1.mlp.",
    r"^norm\.": "post_layernorm.",
}
_PARTS = {"blip.visual_encoder.": "vision.", "blip.text_encoder.": "text.", "mlp.layers.": "head."}


class RewardModel(nn.Module):
    """BLIP's image and text networks with a head, at random weights."""

    SIZES: tuple[dict[str, Any], dict[str, Any]] = (
        {
            "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
            "num_attention_heads": 16, "image_size": 224, "patch_size": 16,
        },
        {  # BERT-base with two more tokens
            "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
            "num_attention_heads": 12, "max_position_embeddings": 512, "vocab_size": 30524,
        },
    )  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        image, text = self.SIZES
        # BLIP's epsilon; transformers' default is 1e-5.
        self.vision = BlipVisionModel(BlipVisionConfig(**image, layer_norm_eps=1e-6))
        config = BlipTextConfig(
            **text,
            encoder_hidden_size=image["hidden_size"],
            layer_norm_eps=1e-12,
            bos_token_id=None,
            sep_token_id=None,
            is_decoder=True,  # adds cross-attention; `forward` applies no causal mask
        )
        self.text = BlipTextModel(config, add_pooling_layer=False)
        self.head = Head(text["hidden_size"])

    def load(self, weights: dict[str, Tensor]) -> None:
        """Load weights under the official names.

        Raises:
            ValueError: If a weight is missing, unexpected or of another shape; names the first.
        """
        renamed = {}
        for name, value in weights.items():
            for old, part in _PARTS.items():  # others are the pretraining's projections
                if name.startswith(old) and not name.endswith(".position_ids"):  # 0, 1, 2, ...
                    rest = name.removeprefix(old)
                    for pattern, new in _VISION.items() if part == "vision." else ():
                        rest = re.sub(pattern, new, rest)
                    renamed[part + rest] = value
        if difference := first_difference(renamed, self.state_dict()):
            raise ValueError(f"the weight {difference.between('it', 'ImageReward')}")
        self.load_state_dict(renamed)


class ImageReward(VisionFeatures):
    """ImageReward (Xu et al., arXiv 2304.05977).

    The score is the head's output, standardized as in the official code to a mean of about 0 and a
    standard deviation of about 1.
    """

    MEAN, STD = 0.16717362830052426, 1.0333394966054072
    MAX_TOKENS = 35

    def __init__(self, model: RewardModel, tokenizer: BertTokenizer) -> None:
        image, text = model.vision.config, model.text.config
        super().__init__(model, OPENAI, image.image_size, text.hidden_size)
        self.tokenizer = tokenizer

    @classmethod
    def from_pretrained(cls, source: str, option: str) -> "ImageReward":
        """Load the official weights in float32.

        Args:
            source: A folder with ImageReward.pt, or a Hub id; with `vocab.txt` if the tokenizer is
                not to be downloaded.
            option: Name of the option that gave the source, for error messages.

        Raises:
            UsageError: If the weights or the tokenizer cannot be loaded.
        """
        with explained(f"--{option}: could not load ImageReward from {source!r}", _REMEDY):
            folder = folder_of(source, _FILE)
            weights = read_tensors(folder / _FILE)
            is_complete = (folder / "vocab.txt").is_file()
            words = folder if is_complete else folder_of(_TOKENIZER, *_WORDS)
            tokenizer, model = BertTokenizer.from_pretrained(words), RewardModel()
            size, own = model.text.config.vocab_size, len(tokenizer)
            if own not in (size, size - 2):  # BLIP added [DEC] and [ENC]
                raise ValueError(f"it has {size} tokens, and its tokenizer {own}")
            model.load(weights)
            return cls(model, tokenizer)

    def score(self, images: Tensor, texts: Sequence[str]) -> Tensor:
        """Score images [B, 3, S, S] in 0..255 for their texts: [B] float32."""
        pixels = self.normalise(images)
        tokens = self.tokenizer(
            list(texts),
            padding="max_length",
            truncation=True,
            max_length=self.MAX_TOKENS,
            return_tensors="pt",
        )
        features = self.model.text(
            input_ids=tokens.input_ids.to(pixels.device),
            attention_mask=tokens.attention_mask.to(pixels.device),
            encoder_hidden_states=self.model.vision(pixel_values=pixels).last_hidden_state,
        ).last_hidden_state[:, 0]
        return (self.model.head(features) - self.MEAN) / self.STD
