"""Architectures of FLUX.1, as their configuration files describe them."""

from functools import partial
from typing import Any

from diffusers import FluxTransformer2DModel
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from sid_lsg.teachers.untrained import (
    CLIP_L,
    T5_XXL,
    Architecture,
    Parts,
    autoencoder,
    flow_scheduler,
    tokenizer_for,
)


def parts(
    transformer: dict[str, Any],
    clip: dict[str, Any],
    t5: dict[str, Any],
    vae_channels: tuple[int, ...] = (128, 256, 512, 512),
) -> Parts:
    """Make the parts of a model of FLUX.1.

    Args:
        transformer: Options of the transformer that differ from FLUX.1-dev's.
        clip: Options of the first text encoder that differ from CLIP ViT-L/14's.
        t5: Options of the second text encoder that differ from T5-XXL's.
        vae_channels: Channels of the autoencoder's levels.
    """
    first = CLIPTextModel(CLIPTextConfig(**CLIP_L | clip))
    second = T5EncoderModel(T5Config(**T5_XXL | t5))
    options: dict[str, Any] = {
        "guidance_embeds": True,
        "joint_attention_dim": second.config.d_model,
        "pooled_projection_dim": first.config.hidden_size,
    }
    return {
        "transformer": FluxTransformer2DModel(**options | transformer),
        "vae": flux_autoencoder(vae_channels),
        "text_encoder": first,
        "text_encoder_2": second,
        "tokenizer": tokenizer_for(first),
        "tokenizer_2": tokenizer_for(second),
        "scheduler": flow_scheduler(shift=3.0, use_dynamic_shifting=True),
    }


def flux_autoencoder(channels: tuple[int, ...] = (128, 256, 512, 512)) -> Any:
    """Make FLUX.1's autoencoder, which Z-Image has too.

    Args:
        channels: Channels of its levels.
    """
    return autoencoder(
        channels,
        sample_size=1024,
        latent_channels=16,
        scaling_factor=0.3611,
        shift_factor=0.1159,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


ARCHITECTURES = {
    "flux-dev": Architecture(
        partial(parts, transformer={}, clip={}, t5={}),
        hub_ids=("black-forest-labs/FLUX.1-dev",),
    ),
    # FLUX.1-dev with a tenth of the channels, for CPUs; both kinds of block.
    "flux-small": Architecture(
        partial(
            parts,
            transformer={
                "num_layers": 4,
                "num_single_layers": 8,
                "num_attention_heads": 4,
                "attention_head_dim": 32,
                "axes_dims_rope": (8, 12, 12),
            },
            clip={"hidden_size": 64, "intermediate_size": 256, "num_attention_heads": 4},
            t5={"d_model": 256, "d_kv": 32, "d_ff": 640, "num_layers": 6, "num_heads": 8},
            vae_channels=(32, 64, 128, 128),
        )
    ),
}
