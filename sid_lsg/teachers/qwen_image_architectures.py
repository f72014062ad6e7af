"""Architectures of Qwen-Image, as their configuration files describe them."""

from functools import partial
from typing import Any

import torch
from diffusers import AutoencoderKLQwenImage, QwenImageTransformer2DModel
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from sid_lsg.teachers.untrained import Architecture, Parts, flow_scheduler, tokenizer_for

_QWEN: dict[str, Any] = {
    "vocab_size": 152064,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "max_position_embeddings": 128000,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 1e6,
        "mrope_section": [16, 24, 24],
    },
}
_VISION = {"hidden_size": 1280, "intermediate_size": 3420, "out_hidden_size": 3584}


def parts(
    transformer: dict[str, Any],
    qwen: dict[str, Any],
    vision: dict[str, Any],
    vae: dict[str, Any],
) -> Parts:
    """Make the parts of a model of Qwen-Image.

    Args:
        transformer: Options of the transformer that differ from Qwen-Image's.
        qwen: Options of the text encoder that differ from Qwen 2.5 VL's with 7B parameters.
        vision: Options of its part for images, which is not used.
        vae: Options of the autoencoder that differ from Qwen-Image's.
    """
    config = Qwen2_5_VLConfig(text_config=_QWEN | qwen, vision_config=_VISION | vision)
    text_encoder = Qwen2_5_VLForConditionalGeneration(config)
    width = config.get_text_config().hidden_size
    network = QwenImageTransformer2DModel(**{"joint_attention_dim": width} | transformer)
    embed: Any = network.pos_embed
    with torch.device("cpu"):  # its angles are no buffers, so they would stay without values
        network.pos_embed = type(embed)(embed.theta, embed.axes_dim, embed.scale_rope)
    return {
        "transformer": network,
        "vae": AutoencoderKLQwenImage(**vae),
        "text_encoder": text_encoder,
        "tokenizer": tokenizer_for(text_encoder),
        "scheduler": flow_scheduler(use_dynamic_shifting=True, shift_terminal=0.02),
    }


ARCHITECTURES = {
    "qwen-image": Architecture(
        partial(parts, transformer={}, qwen={}, vision={}, vae={}), hub_ids=("Qwen/Qwen-Image",)
    ),
    # Qwen-Image with a tenth of the channels, for CPUs.
    "qwen-image-small": Architecture(
        partial(
            parts,
            transformer={
                "num_layers": 8,
                "num_attention_heads": 4,
                "attention_head_dim": 32,
                "axes_dims_rope": (8, 12, 12),
            },
            qwen={
                "hidden_size": 256,
                "intermediate_size": 1024,
                "num_hidden_layers": 6,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "vocab_size": 50000,
                "rope_parameters": _QWEN["rope_parameters"] | {"mrope_section": [8, 12, 12]},
            },
            vision={
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_heads": 2,
                "depth": 1,
                "out_hidden_size": 256,
                "fullatt_block_indexes": [0],
            },
            vae={"base_dim": 24},
        )
    ),
}
