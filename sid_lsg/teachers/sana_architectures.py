"""Architectures of SANA, as their configuration files describe them."""

from functools import partial
from typing import Any

from diffusers import AutoencoderDC, SanaTransformer2DModel
from transformers import Gemma2Config, Gemma2Model

from sid_lsg.teachers.untrained import Architecture, Parts, flow_scheduler, tokenizer_for

INSTRUCTION_KEY = "complex_human_instruction"
"""In the tokenizer's configuration: lines in front of a prompt, if not the pipeline's default."""

# As many tokens as Gemma 2's tokenizer makes of the pipeline's instruction, about. The embedded
# tokenizer makes four times as many of it.
_INSTRUCTION = ["a " * 220]
_VAE = {
    "encoder_block_types": ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3,
    "decoder_block_types": ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3,
    "downsample_block_type": "Conv",
    "upsample_block_type": "interpolate",
    "scaling_factor": 0.41407,
}


def parts(
    transformer: dict[str, Any],
    gemma: dict[str, Any],
    vae_channels: tuple[int, ...] = (128, 256, 512, 512, 1024, 1024),
) -> Parts:
    """Make the parts of a model of SANA.

    Args:
        transformer: Options of the transformer that differ from the model's with 1.6B parameters.
        gemma: Options of the text encoder that differ from Gemma 2's with 2B parameters.
        vae_channels: Channels of the autoencoder's levels.
    """
    text_encoder = Gemma2Model(Gemma2Config(**gemma))
    channels = {f"{part}_block_out_channels": vae_channels for part in ("encoder", "decoder")}
    options: dict[str, Any] = _VAE | channels
    return {
        "transformer": SanaTransformer2DModel(**transformer),
        "vae": AutoencoderDC(**options),
        "text_encoder": text_encoder,
        "tokenizer": tokenizer_for(text_encoder, **{INSTRUCTION_KEY: _INSTRUCTION}),
        "scheduler": flow_scheduler(shift=3.0),
    }


_SMALL = {
    "num_attention_heads": 36,
    "num_cross_attention_heads": 16,
    "cross_attention_head_dim": 72,
    "cross_attention_dim": 1152,
    "num_layers": 28,
}
_NAME = "Efficient-Large-Model/Sana_{}_diffusers"
ARCHITECTURES = {
    "sana-0.6b": Architecture(
        partial(parts, transformer=_SMALL, gemma={}),
        hub_ids=(_NAME.format("600M_1024px"),),
    ),
    "sana-1.6b": Architecture(
        partial(parts, transformer={}, gemma={}),
        hub_ids=(
            _NAME.format("1600M_1024px"),
            _NAME.format("1600M_1024px_BF16"),
            _NAME.format("1600M_1024px_MultiLing"),
        ),
    ),
    # The model with 0.6B parameters at a tenth of its channels, for CPUs.
    "sana-small": Architecture(
        partial(
            parts,
            transformer=_SMALL
            | {
                "num_attention_heads": 4,
                "num_cross_attention_heads": 4,
                "cross_attention_head_dim": 32,
                "cross_attention_dim": 128,
                "caption_channels": 256,
            },
            gemma={
                "hidden_size": 256,
                "intermediate_size": 1024,
                "num_hidden_layers": 6,
                "num_attention_heads": 2,
                "num_key_value_heads": 1,
                "head_dim": 64,
                "vocab_size": 50000,
            },
            vae_channels=(32, 32, 64, 64, 128, 128),
        )
    ),
}
