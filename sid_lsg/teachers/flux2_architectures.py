"""Architectures of FLUX.2-klein-base, as their configuration files describe them."""

from functools import partial
from typing import Any

from diffusers import AutoencoderKLFlux2, Flux2Transformer2DModel
from transformers import Qwen3Config, Qwen3ForCausalLM

from sid_lsg.teachers.untrained import (
    QWEN3_4B,
    QWEN3_SMALL,
    Architecture,
    Parts,
    flow_scheduler,
    tokenizer_for,
)

_STATES = 3  # hidden states of the text encoder that the transformer attends to


def parts(
    transformer: dict[str, Any],
    qwen: dict[str, Any],
    vae_channels: tuple[int, ...] = (128, 256, 512, 512),
) -> Parts:
    """Make the parts of a model of FLUX.2-klein-base.

    Args:
        transformer: Options of the transformer that differ from FLUX.2's.
        qwen: Options of the text encoder that differ from Qwen 3's with 4B parameters.
        vae_channels: Channels of the autoencoder's levels.
    """
    text_encoder = Qwen3ForCausalLM(Qwen3Config(**QWEN3_4B | qwen))
    options: dict[str, Any] = {
        "guidance_embeds": False,
        "joint_attention_dim": _STATES * text_encoder.config.hidden_size,
    }
    return {
        "transformer": Flux2Transformer2DModel(**options | transformer),
        "vae": AutoencoderKLFlux2(block_out_channels=vae_channels, sample_size=1024),
        "text_encoder": text_encoder,
        "tokenizer": tokenizer_for(text_encoder),
        "scheduler": flow_scheduler(shift=3.0, use_dynamic_shifting=True),
    }


_KLEIN = {"num_layers": 5, "num_single_layers": 20, "num_attention_heads": 24}
_NAME = "black-forest-labs/FLUX.2-klein-base-"
ARCHITECTURES = {
    "flux2-klein-4b": Architecture(
        partial(parts, transformer=_KLEIN, qwen={}), hub_ids=(f"{_NAME}4B",)
    ),
    "flux2-klein-9b": Architecture(
        partial(
            parts,
            transformer={"num_layers": 8, "num_single_layers": 24, "num_attention_heads": 32},
            qwen={"hidden_size": 4096, "intermediate_size": 12288, "tie_word_embeddings": False},
        ),
        hub_ids=(f"{_NAME}9B",),
    ),
    # FLUX.2-klein-base with a tenth of the channels, for CPUs; both kinds of block.
    "flux2-small": Architecture(
        partial(
            parts,
            transformer=_KLEIN
            | {"num_attention_heads": 4, "attention_head_dim": 32, "axes_dims_rope": (8,) * 4},
            qwen=QWEN3_SMALL | {"num_hidden_layers": 28},
            vae_channels=(32, 64, 128, 128),
        )
    ),
}
