"""Models with random weights, for measuring time and memory, and outlines of models for counting.

`--model.teacher architecture:sd15` trains with such a model; nothing is downloaded. Each family
lists its own architectures.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler, FlowMatchEulerDiscreteScheduler
from torch import nn
from transformers import CLIPTokenizer, PreTrainedTokenizerBase

from sid_lsg.files.sources import resolve
from sid_lsg.teachers.precision import linear_layers

_TOKENIZER = "package:demo/fashion/tokenizer"
_LENGTH = 512  # of text encoders without positions, such as T5

# The text encoders of SDXL and Stable Diffusion 3: CLIP ViT-L/14 and ViT-bigG/14.
CLIP_L = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "projection_dim": 768,
}
CLIP_G = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "hidden_act": "gelu",
    "projection_dim": 1280,
}

T5_XXL = {
    "vocab_size": 32128,
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
}

QWEN3_4B: dict[str, Any] = {
    "vocab_size": 151936,
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 40960,
    "tie_word_embeddings": True,
}
QWEN3_SMALL: dict[str, Any] = {
    "vocab_size": 50000,
    "hidden_size": 256,
    "intermediate_size": 1024,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
}
_CHAT = "{{ messages[0]['content'] }}"  # in place of a language model's template

Parts = dict[str, Any]
"""Parts of a model by their subfolders: networks, tokenizers and a scheduler."""


@dataclass(frozen=True)
class Architecture:
    """An untrained model that a family can make.

    Attributes:
        make: Makes the model's parts.
        hub_ids: Present and former Hub ids of models of this architecture.
    """

    make: Callable[[], Parts]
    hub_ids: tuple[str, ...] = ()


def untrained(
    architecture: Architecture,
    device: str | torch.device,
    seed: int,
    dtypes: Mapping[str, torch.dtype] | None = None,
) -> Parts:
    """Make the parts of an architecture with random weights; nothing is downloaded.

    Args:
        architecture: The architecture.
        device: Device of the weights; on "meta" they have only shapes.
        seed: Seed of the weights. The global random state does not change.
        dtypes: Dtypes of parts' linear and convolution weights; by default float32.
    """
    with torch.device("meta"):  # skips the libraries' initialisation, which is slow
        parts = architecture.make()
    for name, dtype in (dtypes or {}).items():
        for layer in linear_layers(parts[name]):
            layer.to(dtype)
    if torch.device(device).type != "meta":
        generator = torch.Generator(device).manual_seed(seed)
        for part in parts.values():
            if isinstance(part, nn.Module):
                initialise(part.to_empty(device=device), generator)
    return parts


def configured(
    classes: Mapping[str, Any], source: str, where: Mapping[str, str], revision: str | None
) -> Parts:
    """Make the parts of a model on the meta device, from its configuration files.

    Args:
        classes: The classes of the parts, by name.
        source: The model's folder or Hub id.
        where: The subfolders of the parts.
        revision: Branch, tag or commit on the Hub.

    Raises:
        OSError: If a file cannot be read.
        ValueError: If a file cannot be parsed.
    """
    parts = {}
    for name, kind in classes.items():
        place = {"subfolder": where[name], "revision": revision}
        if issubclass(kind, PreTrainedTokenizerBase):
            continue
        if hasattr(kind, "load_config"):
            config = kind.load_config(source, **place)
            with torch.device("meta" if issubclass(kind, nn.Module) else "cpu"):
                parts[name] = kind.from_config(config)
        else:
            config = kind.config_class.from_pretrained(source, **place)
            with torch.device("meta"):
                parts[name] = kind(config)
    for name in classes.keys() - parts.keys():
        parts[name] = tokenizer_for(parts[name.replace("tokenizer", "text_encoder")])
    return parts


def tokenizer_for(text_encoder: nn.Module, **options: Any) -> CLIPTokenizer:
    """Load the embedded demo's tokenizer, padding to a text encoder's number of positions.

    Its ids are valid for CLIP's text encoders, which have 49,408. The lengths, and so all costs,
    are the model's.

    Args:
        text_encoder: The text encoder.
        options: More options of the tokenizer.
    """
    encoder: Any = text_encoder
    config = encoder.config.get_text_config()
    length = getattr(config, "max_position_embeddings", _LENGTH)
    if config.model_type.startswith("qwen"):
        options = {"chat_template": _CHAT, **options}
    return CLIPTokenizer.from_pretrained(resolve(_TOKENIZER), model_max_length=length, **options)


def autoencoder(channels: tuple[int, ...] = (128, 256, 512, 512), **options: Any) -> AutoencoderKL:
    """Make the KL autoencoder of Stable Diffusion and SDXL.

    Args:
        channels: Channels of its levels.
        options: Other options that differ from Stable Diffusion 1's.
    """
    return AutoencoderKL(
        block_out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        layers_per_block=2,
        **{"sample_size": 512} | options,
    )


def scheduler(**options: Any) -> DDPMScheduler:
    """Make the scheduler of Stable Diffusion and SDXL.

    Args:
        options: Options that differ, such as the betas.
    """
    usual = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    with torch.device("cpu"):
        return DDPMScheduler(**usual | {"clip_sample": False} | options)


def flow_scheduler(**options: Any) -> FlowMatchEulerDiscreteScheduler:
    """Make the scheduler of flow-matching models.

    Args:
        options: Its options, such as the shift.
    """
    with torch.device("cpu"):
        return FlowMatchEulerDiscreteScheduler(**options)


@torch.no_grad()
def initialise(network: nn.Module, generator: torch.Generator) -> None:
    """Initialise weights as PyTorch's layers do, so that activations neither vanish nor overflow.

    Weights with n inputs get U(-1/sqrt(n), 1/sqrt(n)), biases 0, scales 1.
    """
    for name, p in network.named_parameters():
        if p.dim() > 1:
            limit = p[0].numel() ** -0.5
            p.uniform_(-limit, limit, generator=generator)
        else:
            p.fill_(not name.endswith("bias"))
    for name, buffer in network.named_buffers():  # CLIP's position ids, an embedding of positions
        if buffer.is_floating_point():
            # Gemma's scale of embeddings is a scalar; FLUX.2's autoencoder has a variance.
            buffer.fill_(not buffer.dim() or name.endswith("running_var"))
        else:
            buffer.copy_(torch.arange(buffer.numel()).view_as(buffer))
