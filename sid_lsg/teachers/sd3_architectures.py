"""Architectures of Stable Diffusion 3.5, as their configuration files describe them."""

from functools import partial
from typing import Any

from diffusers import SD3Transformer2DModel
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel

from sid_lsg.teachers.untrained import (
    CLIP_G,
    CLIP_L,
    T5_XXL,
    Architecture,
    Parts,
    autoencoder,
    flow_scheduler,
    tokenizer_for,
)

_TRANSFORMER = {
    "sample_size": 128,
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 16,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 2048,
    "qk_norm": "rms_norm",
}


def parts(
    transformer: dict[str, Any],
    clip_l: dict[str, Any],
    clip_g: dict[str, Any],
    t5: dict[str, Any],
    vae_channels: tuple[int, ...] = (128, 256, 512, 512),
) -> Parts:
    """Make the parts of a model of Stable Diffusion 3.5.

    Args:
        transformer: Options of the transformer besides those that all sizes share.
        clip_l: Options of the first text encoder that differ from CLIP ViT-L/14's.
        clip_g: Options of the second text encoder that differ from CLIP ViT-bigG/14's.
        t5: Options of the third text encoder that differ from T5-XXL's.
        vae_channels: Channels of the autoencoder's levels.
    """
    first = CLIPTextModelWithProjection(CLIPTextConfig(**CLIP_L | clip_l))
    second = CLIPTextModelWithProjection(CLIPTextConfig(**CLIP_G | clip_g))
    third = T5EncoderModel(T5Config(**T5_XXL | t5))
    return {
        "transformer": SD3Transformer2DModel(**_TRANSFORMER | transformer),
        "vae": autoencoder(
            vae_channels,
            sample_size=1024,
            latent_channels=16,
            scaling_factor=1.5305,
            shift_factor=0.0609,
            use_quant_conv=False,
            use_post_quant_conv=False,
        ),
        "text_encoder": first,
        "text_encoder_2": second,
        "text_encoder_3": third,
        "tokenizer": tokenizer_for(first),
        "tokenizer_2": tokenizer_for(second, pad_token="!"),
        "tokenizer_3": tokenizer_for(third),
        "scheduler": flow_scheduler(shift=3.0),
    }


_MEDIUM = {
    "num_layers": 24,
    "num_attention_heads": 24,
    "attention_head_dim": 64,
    "caption_projection_dim": 1536,
    "pos_embed_max_size": 384,
    "dual_attention_layers": tuple(range(13)),
}
_LARGE = {
    "num_layers": 38,
    "num_attention_heads": 38,
    "attention_head_dim": 64,
    "caption_projection_dim": 2432,
    "pos_embed_max_size": 192,
}
ARCHITECTURES = {
    "sd35-medium": Architecture(
        partial(parts, transformer=_MEDIUM, clip_l={}, clip_g={}, t5={}),
        hub_ids=("stabilityai/stable-diffusion-3.5-medium",),
    ),
    "sd35-large": Architecture(
        partial(parts, transformer=_LARGE, clip_l={}, clip_g={}, t5={}),
        hub_ids=("stabilityai/stable-diffusion-3.5-large",),
    ),
    "sd3-medium": Architecture(
        partial(
            parts,
            transformer={
                "num_layers": 24,
                "num_attention_heads": 24,
                "attention_head_dim": 64,
                "caption_projection_dim": 1536,
                "pos_embed_max_size": 192,
                "qk_norm": None,
            },
            clip_l={},
            clip_g={},
            t5={},
        ),
        hub_ids=("stabilityai/stable-diffusion-3-medium-diffusers",),
    ),
    # Stable Diffusion 3.5 medium with a tenth of the channels, for CPUs; both kinds of block.
    "sd35-small": Architecture(
        partial(
            parts,
            transformer={
                "num_layers": 8,
                "num_attention_heads": 4,
                "attention_head_dim": 32,
                "caption_projection_dim": 128,
                "joint_attention_dim": 256,
                "pooled_projection_dim": 192,
                "pos_embed_max_size": 96,
                "dual_attention_layers": (0, 1, 2, 3),
            },
            clip_l={
                "hidden_size": 64,
                "intermediate_size": 256,
                "num_attention_heads": 4,
                "projection_dim": 64,
            },
            clip_g={
                "hidden_size": 128,
                "intermediate_size": 512,
                "num_attention_heads": 8,
                "num_hidden_layers": 12,
                "projection_dim": 128,
            },
            t5={"d_model": 256, "d_kv": 32, "d_ff": 640, "num_layers": 6, "num_heads": 8},
            vae_channels=(32, 64, 128, 128),
        )
    ),
}
