"""Architectures of SDXL, as their configuration files describe them."""

from functools import partial
from typing import Any

from diffusers import UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from sid_lsg.teachers.untrained import (
    CLIP_G,
    CLIP_L,
    Architecture,
    Parts,
    autoencoder,
    scheduler,
    tokenizer_for,
)

_UNET = {
    "sample_size": 128,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (320, 640, 1280),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
_CHANNELS = (128, 256, 512, 512)


def parts(
    unet: dict[str, Any],
    clip_l: dict[str, Any],
    clip_g: dict[str, Any],
    vae_channels: tuple[int, ...] = _CHANNELS,
) -> Parts:
    """Make the parts of a model of SDXL.

    Args:
        unet: Options of the UNet that differ from SDXL's.
        clip_l: Options of the first text encoder that differ from CLIP ViT-L/14's.
        clip_g: Options of the second text encoder that differ from CLIP ViT-bigG/14's.
        vae_channels: Channels of the autoencoder's levels.
    """
    first = CLIPTextModel(CLIPTextConfig(**CLIP_L | clip_l))
    second = CLIPTextModelWithProjection(CLIPTextConfig(**CLIP_G | clip_g))
    return {
        "unet": UNet2DConditionModel(**_UNET | unet),
        "vae": autoencoder(vae_channels, sample_size=1024, scaling_factor=0.13025),
        "text_encoder": first,
        "text_encoder_2": second,
        "tokenizer": tokenizer_for(first),
        "tokenizer_2": tokenizer_for(second, pad_token="!"),
        "scheduler": scheduler(),
    }


ARCHITECTURES = {
    "sdxl": Architecture(
        partial(parts, unet={}, clip_l={}, clip_g={}),
        hub_ids=("stabilityai/stable-diffusion-xl-base-1.0",),
    ),
    # SDXL with a tenth of the channels, for CPUs; it has every kind of block.
    "sdxl-small": Architecture(
        partial(
            parts,
            unet={
                "block_out_channels": (32, 64, 128),
                "attention_head_dim": (1, 2, 4),
                "cross_attention_dim": 192,
                "addition_time_embed_dim": 32,
                "projection_class_embeddings_input_dim": 288,
            },
            clip_l={"hidden_size": 64, "intermediate_size": 256, "num_attention_heads": 4},
            clip_g={
                "hidden_size": 128,
                "intermediate_size": 512,
                "num_attention_heads": 8,
                "num_hidden_layers": 12,
                "projection_dim": 96,
            },
            vae_channels=(32, 64, 128, 128),
        )
    ),
}
