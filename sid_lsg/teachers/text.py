"""CLIP's text encoder, as Stable Diffusion uses it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import CLIPTextModel, CLIPTokenizer


class PromptEncoder(nn.Module):
    """A CLIP tokenizer and text encoder, in the way Stable Diffusion uses them."""

    def __init__(self, tokenizer: "CLIPTokenizer", text_encoder: "CLIPTextModel") -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.text_encoder = text_encoder

    @torch.no_grad()
    def forward(self, input_ids: Tensor) -> Tensor:
        """Encode tokens, [B, L] int64.

        Returns:
            [B, L, D], the last hidden state after the final LayerNorm.
        """
        device = next(self.text_encoder.parameters()).device
        return self.text_encoder(input_ids.to(device, non_blocking=True))[0]


def tokenize(tokenizer: "CLIPTokenizer", prompts: Sequence[str]) -> dict[str, Tensor]:
    """Turn prompts into `input_ids` [B, L] int64, padded or cut to the tokenizer's length L.

    As diffusers does it. The official code's tokenizer also repairs text (`ftfy`): broken
    characters, typographic quotes and HTML's `&amp;` are other tokens there.
    """
    # A mask would not be used, and lists take half the time that the tokenizer's own tensors do.
    tokens = tokenizer(
        list(prompts), padding="max_length", truncation=True, return_attention_mask=False
    )
    return {"input_ids": torch.tensor(tokens.input_ids)}


def cut_off(tokenizer: "CLIPTokenizer", prompt: str) -> str:
    """Return what of a prompt is beyond the tokenizer's length, and not seen; "" if nothing."""
    tokens = tokenizer(prompt, return_offsets_mapping=True, verbose=False)
    if len(tokens.input_ids) <= tokenizer.model_max_length:
        return ""
    first = tokens.offset_mapping[tokenizer.model_max_length - 1][0]  # one place is the end token's
    return prompt[first:].strip()
