"""Human-preference scores: HPSv2 and ImageReward.

The official packages pin old dependencies and unpickle their weights. These classes use
transformers models and read the official files with `weights_only=True`; preprocessing,
tokenization and scores follow the official code. They are tested against independent
implementations at a small size, but not on the official weights. Scores are computed in float32;
HPSv2's official code uses mixed float16 on a GPU.
"""

import html
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertTokenizer, BlipTextModel, BlipVisionModel, CLIPModel, CLIPTokenizer

from sid_lsg.files.loading import explained
from sid_lsg.metrics.features import CLIPFeatures
from sid_lsg.metrics.official_weights import blip_models, open_clip_model, reward_head
from sid_lsg.metrics.preference_pixels import hpsv2_pixels, image_reward_pixels
from sid_lsg.metrics.pretrained import (
    identify,
    load_tokenizer,
    locate,
    names_a_file,
    read_weights,
    wrong_tokenizer,
)

_MEAN = (0.48145466, 0.4578275, 0.40821073)  # of OpenAI's CLIP, for both models
_STD = (0.26862954, 0.26130258, 0.27577711)
_CLIP_TOKENIZER = "openai/clip-vit-large-patch14"
_BERT_TOKENIZER = "google-bert/bert-base-uncased"
_HPSV2_REMEDY = (
    "Give the official HPS_v2.1_compressed.pt, as a path or as hf:xswu/HPSv2/<file>, or a folder "
    "or Hub id in the layout of transformers' CLIPModel, that this machine can reach."
)
_REWARD_REMEDY = (
    "Give the official ImageReward.pt, as a path or as hf:THUDM/ImageReward/ImageReward.pt, that "
    "this machine can reach."
)


class Preference(nn.Module, ABC):
    """A frozen model of human preference for an image, given a text.

    Attributes:
        name: Name of the score.
        identity: What was loaded: `source`, `file`, the file's `sha256`, `tokenizer`.
    """

    name: ClassVar[str]
    mean: Tensor
    std: Tensor

    def __init__(self, identity: dict[str, str]) -> None:
        super().__init__()
        self.identity = identity
        for name, value in (("mean", _MEAN), ("std", _STD)):
            self.register_buffer(name, torch.tensor(value)[:, None, None], persistent=False)

    @torch.no_grad()
    def score(self, images: Tensor, texts: Sequence[str]) -> Tensor:
        """Score each image for its text; higher is better.

        Args:
            images: [B, 3, H, W] uint8, of any size.
            texts: B prompts.

        Returns:
            [B] float32 on the model's device.
        """
        if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] != 3:
            raise ValueError(f"images are {images.dtype} {list(images.shape)}, not uint8 B3HW")
        if len(images) != len(texts):
            raise ValueError(f"there are {len(images)} images and {len(texts)} texts")
        with torch.autocast(self.mean.device.type, enabled=False):
            pixels = self._prepare(images).to(self.mean.device)
            return self._score((pixels - self.mean) / self.std, texts)

    def train(self, mode: bool = True) -> "Preference":
        """Stay in evaluation mode: training mode of a parent module must not enable dropout."""
        return super().train(False)

    def _freeze(self) -> None:
        self.requires_grad_(False).eval()

    @abstractmethod
    def _prepare(self, images: Tensor) -> Tensor:
        """Resize uint8 images to the model's input size: float32, white is 1."""

    @abstractmethod
    def _score(self, pixels: Tensor, texts: Sequence[str]) -> Tensor:
        """Score normalized images [B, 3, S, S]: [B]."""


class HPSv2(Preference):
    """Human Preference Score v2 and v2.1 (Wu et al., arXiv 2306.09341): a fine-tuned CLIP.

    The score is the cosine similarity of the image and text embeddings, as `hpsv2.score` returns
    it; the benchmark's tables show 100 times that. Texts are unescaped and tokenized as in
    OpenCLIP, but without ftfy's repair of broken and typographic characters.
    """

    name = "hpsv2"
    HEAD_WIDTHS = (80, 64)  # of ViT-H-14

    def __init__(
        self, model: CLIPModel, tokenizer: CLIPTokenizer, identity: dict[str, str]
    ) -> None:
        super().__init__(identity)
        self.model = model
        self.tokenizer = tokenizer
        self._freeze()

    @classmethod
    def from_pretrained(
        cls, source: str, option: str = "hpsv2", tokenizer: str | None = None
    ) -> "HPSv2":
        """Load the model in float32.

        Args:
            source: The official file, `hf:xswu/HPSv2/HPS_v2_compressed.pt` (v2) or
                `hf:xswu/HPSv2/HPS_v2.1_compressed.pt` (v2.1), or its path; or a folder, Hub id or
                `package:...` in the layout of transformers' CLIPModel.
            option: Name of the option that gave the source, for error messages.
            tokenizer: Folder or Hub id of CLIP's tokenizer; by default the folder's, or OpenAI's
                for the official file.

        Raises:
            UsageError: If the model or its tokenizer cannot be loaded.
        """
        with explained(f"--{option}: could not load HPSv2 from {source!r}", _HPSV2_REMEDY):
            path = locate(source, ["*.json", "*.txt", "*.safetensors"])
            if path.is_dir():
                model = CLIPFeatures.from_pretrained(str(path), option).model
                whole = path / "model.safetensors"
                files = [whole] if whole.exists() else sorted(path.glob("*.safetensors"))
            else:
                model = open_clip_model(read_weights(path), cls.HEAD_WIDTHS)
                files = [path]
            identity = identify(source, files)
        identity["tokenizer"] = tokenizer or (source if path.is_dir() else _CLIP_TOKENIZER)
        loaded = load_tokenizer(CLIPTokenizer, identity["tokenizer"], option)
        text = model.config.text_config
        # Configs from before 2023 have eos_token_id 2 but mean the last token of the vocabulary.
        if len(loaded) != text.vocab_size or text.eos_token_id not in (2, loaded.eos_token_id):
            found = f"{len(loaded)} tokens, end token {loaded.eos_token_id}"
            expected = f"{text.vocab_size} tokens, end token {text.eos_token_id}"
            raise wrong_tokenizer(identity["tokenizer"], option, found, expected)
        return cls(model, loaded, identity)

    def _prepare(self, images: Tensor) -> Tensor:
        images = images.to(self.mean.device)
        return hpsv2_pixels(images, self.model.config.vision_config.image_size)

    def _score(self, pixels: Tensor, texts: Sequence[str]) -> Tensor:
        vision = self.model.vision_model(pixel_values=pixels)
        # The padding token has no effect: attention is causal, and the end token is pooled.
        tokens = self.tokenizer(
            [html.unescape(html.unescape(text)) for text in texts],
            padding="max_length",
            truncation=True,
            max_length=self.model.config.text_config.max_position_embeddings,
            return_tensors="pt",
        )
        text = self.model.text_model(input_ids=tokens.input_ids.to(pixels.device))
        return F.cosine_similarity(
            self.model.visual_projection(vision.pooler_output),
            self.model.text_projection(text.pooler_output),
        )


class ImageReward(Preference):
    """ImageReward (Xu et al., arXiv 2304.05977): BLIP's text encoder, attending to the image.

    The score is the head's output for the text's first token, standardized as in the official
    code to a mean of about 0 and a standard deviation of about 1.
    """

    name = "image_reward"
    HEAD_WIDTHS = (64, 64)  # of ViT-L/16 and BERT-base
    MEAN, STD = 0.16717362830052426, 1.0333394966054072
    MAX_TOKENS = 35

    def __init__(
        self,
        vision: BlipVisionModel,
        text: BlipTextModel,
        head: nn.Module,
        tokenizer: BertTokenizer,
        identity: dict[str, str],
    ) -> None:
        super().__init__(identity)
        self.vision, self.text, self.head = vision, text, head
        self.tokenizer = tokenizer
        self._freeze()

    @classmethod
    def from_pretrained(
        cls, source: str, option: str = "image_reward", tokenizer: str | None = None
    ) -> "ImageReward":
        """Load the model in float32.

        Args:
            source: The official file, `hf:THUDM/ImageReward/ImageReward.pt`, or its path.
            option: Name of the option that gave the source, for error messages.
            tokenizer: Folder or Hub id of uncased BERT's tokenizer; by default Google's.

        Raises:
            UsageError: If the model or its tokenizer cannot be loaded.
        """
        with explained(f"--{option}: could not load ImageReward from {source!r}", _REWARD_REMEDY):
            if not names_a_file(source):
                raise ValueError("it does not name a weights file")
            path = locate(source)
            weights = read_weights(path)
            vision, text = blip_models(weights, cls.HEAD_WIDTHS)
            head = reward_head(weights, text.config.hidden_size)
            identity = identify(source, [path])
        identity["tokenizer"] = tokenizer or _BERT_TOKENIZER
        loaded = load_tokenizer(BertTokenizer, identity["tokenizer"], option)
        vocabulary = text.config.vocab_size
        if not vocabulary - 2 <= len(loaded) <= vocabulary:  # BLIP added [DEC] and [ENC]
            found = f"{len(loaded)} tokens"
            raise wrong_tokenizer(identity["tokenizer"], option, found, f"{vocabulary} tokens")
        return cls(vision, text, head, loaded, identity)

    def _prepare(self, images: Tensor) -> Tensor:
        return image_reward_pixels(images, self.vision.config.image_size)

    def _score(self, pixels: Tensor, texts: Sequence[str]) -> Tensor:
        tokens = self.tokenizer(
            list(texts),
            padding="max_length",
            truncation=True,
            max_length=self.MAX_TOKENS,
            return_tensors="pt",
        )
        encoded = self.text(
            input_ids=tokens.input_ids.to(pixels.device),
            attention_mask=tokens.attention_mask.to(pixels.device),
            encoder_hidden_states=self.vision(pixel_values=pixels).last_hidden_state,
        )
        return (self.head(encoded.last_hidden_state[:, 0])[:, 0] - self.MEAN) / self.STD
