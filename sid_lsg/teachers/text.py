"""Tokenize and encode prompts with CLIP, as Stable Diffusion does."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import CLIPTextModel, CLIPTokenizer, PreTrainedTokenizerBase


MASKED = ("input_ids", "attention_mask")
"""The tokens of an encoder whose padding is masked."""


def on_device_of(network: nn.Module, tokens: Tensor) -> Tensor:
    """Return tokens on a network's device.

    The host does not wait for a copy to a GPU. It waits for a copy to the CPU, which may be read at
    once: such a copy is complete only when the GPU has come to it.
    """
    device = next(network.parameters()).device
    return tokens.to(device, non_blocking=device.type != "cpu")


class PromptEncoder(nn.Module):
    """A CLIP tokenizer and text encoder, used as in Stable Diffusion."""

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
        return self.text_encoder(on_device_of(self.text_encoder, input_ids))[0]


@torch.no_grad()
def penultimate(text_encoder: nn.Module, input_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Encode tokens, [B, L] int64, as SDXL does.

    Returns:
        [B, L, D], the last but one hidden state, without the final LayerNorm; and the encoder's
        first output: of a `CLIPTextModelWithProjection`, the projected features [B, P] of the
        prompt's first end token.
    """
    found = text_encoder(on_device_of(text_encoder, input_ids), output_hidden_states=True)
    return found.hidden_states[-2], found[0]


def tokenize(
    tokenizer: "PreTrainedTokenizerBase", prompts: Sequence[str], length: int | None = None
) -> dict[str, Tensor]:
    """Turn prompts into `input_ids` [B, L] int64, padded or cut to a length L.

    This is diffusers' tokenization. The official code's tokenizer also repairs text with `ftfy`, so
    its tokens differ for broken characters, typographic quotes and HTML entities such as `&amp;`.

    Args:
        tokenizer: The tokenizer.
        prompts: B prompts.
        length: L; by default the tokenizer's.
    """
    # The mask is not needed, and lists take half the time of the tokenizer's own tensors.
    tokens = tokenizer(
        list(prompts),
        padding="max_length",
        max_length=length,
        truncation=True,
        return_attention_mask=False,
    )
    return {"input_ids": torch.tensor(tokens.input_ids)}


def tokenize_masked(
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[str],
    length: int,
    side: str | None = None,
) -> dict[str, Tensor]:
    """Turn prompts into `input_ids` and `attention_mask`, [B, L] int64.

    Args:
        tokenizer: The tokenizer.
        prompts: B prompts.
        length: L.
        side: Where padding is put, by default on the right.
    """
    tokens = tokenizer(
        list(prompts),
        padding="max_length",
        padding_side=side or "right",
        max_length=length,
        truncation=True,
        return_attention_mask=True,
    )
    return {name: torch.tensor(tokens[name]) for name in MASKED}


def readable(mask: Tensor) -> "Tensor | dict[str, None]":
    """Return a mask for a language model of transformers, which reads its values.

    On the meta device, where tensors have none, return what stands for no masks.
    """
    return {"full_attention": None, "sliding_attention": None} if mask.is_meta else mask


def chat(tokenizer: "PreTrainedTokenizerBase", prompts: Sequence[str], **options: Any) -> list[str]:
    """Return prompts as the user's message of a chat, ready for a language model's answer.

    Args:
        tokenizer: A tokenizer with a chat template.
        prompts: The prompts.
        options: Arguments of the template, such as enable_thinking.
    """
    return [
        str(
            tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt}],
                tokenize=False,
                add_generation_prompt=True,
                **options,
            )
        )
        for prompt in prompts
    ]


def chat_cut_off(tokenizer: "PreTrainedTokenizerBase", prompt: str, text: str, length: int) -> str:
    """Return the end of a prompt that exceeds a length within the text that is tokenized.

    Args:
        tokenizer: The tokenizer.
        prompt: The prompt.
        text: The text, which has the prompt in it.
        length: The number of tokens that are read.
    """
    tokens = tokenizer(text, return_offsets_mapping=True, verbose=False)
    if len(tokens.input_ids) <= length:
        return ""
    start = text.find(prompt)
    read = int(tokens.offset_mapping[length][0]) - start
    return prompt[max(read, 0) :].strip()


def cut_off(tokenizer: "PreTrainedTokenizerBase", prompt: str, length: int | None = None) -> str:
    """Return the end of a prompt that exceeds a length, by default the tokenizer's.

    Returns:
        "" if nothing does.
    """
    length = length or tokenizer.model_max_length
    tokens = tokenizer(prompt, return_offsets_mapping=True, verbose=False)
    if len(tokens.input_ids) <= length:
        return ""
    first = tokens.offset_mapping[length - 1][0]  # the last id is the end token
    return prompt[first:].strip()
