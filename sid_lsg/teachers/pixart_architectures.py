"""Architectures of PixArt, as their configuration files describe them."""

from functools import partial
from typing import Any

from diffusers import PixArtTransformer2DModel
from transformers import T5Config, T5EncoderModel

from sid_lsg.teachers.untrained import (
    T5_XXL,
    Architecture,
    Parts,
    autoencoder,
    scheduler,
    tokenizer_for,
)

_SIGMA_SCALE = 0.13025  # of SDXL's autoencoder; PixArt-Alpha has Stable Diffusion's


def parts(
    transformer: dict[str, Any],
    t5: dict[str, Any],
    scaling_factor: float = _SIGMA_SCALE,
    vae_channels: tuple[int, ...] = (128, 256, 512, 512),
) -> Parts:
    """Make the parts of a model of PixArt.

    Args:
        transformer: Options of the transformer that differ from the model's at 1024 px.
        t5: Options of the text encoder that differ from T5-XXL's.
        scaling_factor: Of the autoencoder's latents.
        vae_channels: Channels of the autoencoder's levels.
    """
    text_encoder = T5EncoderModel(T5Config(**T5_XXL | t5))
    options: dict[str, Any] = {
        "caption_channels": text_encoder.config.d_model,
        "use_additional_conditions": False,
    }
    return {
        "transformer": PixArtTransformer2DModel(**options | transformer),
        "vae": autoencoder(vae_channels, sample_size=512, scaling_factor=scaling_factor),
        "text_encoder": text_encoder,
        "tokenizer": tokenizer_for(text_encoder),
        "scheduler": scheduler(beta_schedule="linear", beta_start=0.0001, beta_end=0.02),
    }


_ALPHA_SCALE = 0.18215
SIGMA = {
    "pixart-sigma": Architecture(
        partial(parts, transformer={}, t5={}),
        hub_ids=("PixArt-alpha/PixArt-Sigma-XL-2-1024-MS",),
    ),
    "pixart-sigma-512": Architecture(
        partial(parts, transformer={"sample_size": 64}, t5={}),
        hub_ids=("PixArt-alpha/PixArt-Sigma-XL-2-512-MS",),
    ),
    # PixArt-Sigma at a tenth of its channels, for CPUs.
    "pixart-small": Architecture(
        partial(
            parts,
            transformer={
                "num_attention_heads": 4,
                "attention_head_dim": 32,
                "cross_attention_dim": 128,
                "num_layers": 14,
            },
            t5={"d_model": 256, "d_kv": 32, "d_ff": 640, "num_layers": 6, "num_heads": 8},
            vae_channels=(32, 64, 128, 128),
        )
    ),
}
ALPHA = {
    "pixart-alpha": Architecture(
        partial(
            parts,
            transformer={"use_additional_conditions": True},
            t5={},
            scaling_factor=_ALPHA_SCALE,
        ),
        hub_ids=("PixArt-alpha/PixArt-XL-2-1024-MS",),
    ),
    "pixart-alpha-512": Architecture(
        partial(parts, transformer={"sample_size": 64}, t5={}, scaling_factor=_ALPHA_SCALE),
        hub_ids=("PixArt-alpha/PixArt-XL-2-512x512",),
    ),
}
