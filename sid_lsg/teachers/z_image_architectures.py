"""Architectures of Z-Image, as their configuration files describe them."""

from functools import partial
from typing import Any

from diffusers import ZImageTransformer2DModel
from transformers import Qwen3Config, Qwen3Model

from sid_lsg.teachers.flux_architectures import flux_autoencoder
from sid_lsg.teachers.untrained import (
    QWEN3_4B,
    QWEN3_SMALL,
    Architecture,
    Parts,
    flow_scheduler,
    tokenizer_for,
)


def parts(
    transformer: dict[str, Any],
    qwen: dict[str, Any],
    vae_channels: tuple[int, ...] = (128, 256, 512, 512),
) -> Parts:
    """Make the parts of a model of Z-Image.

    Args:
        transformer: Options of the transformer that differ from Z-Image's.
        qwen: Options of the text encoder that differ from Qwen 3's with 4B parameters.
        vae_channels: Channels of the autoencoder's levels.
    """
    text_encoder = Qwen3Model(Qwen3Config(**QWEN3_4B | qwen))
    options: dict[str, Any] = {
        "cap_feat_dim": text_encoder.config.hidden_size,
        "axes_lens": [1536, 512, 512],
    }
    return {
        "transformer": ZImageTransformer2DModel(**options | transformer),
        "vae": flux_autoencoder(vae_channels),
        "text_encoder": text_encoder,
        "tokenizer": tokenizer_for(text_encoder),
        "scheduler": flow_scheduler(shift=6.0),
    }


ARCHITECTURES = {
    "z-image": Architecture(
        partial(parts, transformer={}, qwen={}), hub_ids=("Tongyi-MAI/Z-Image",)
    ),
    # Z-Image with a tenth of the channels, for CPUs.
    "z-image-small": Architecture(
        partial(
            parts,
            transformer={"dim": 128, "n_layers": 8, "n_heads": 4, "n_kv_heads": 4}
            | {"axes_dims": [8, 12, 12]},
            qwen=QWEN3_SMALL,
            vae_channels=(32, 64, 128, 128),
        )
    ),
}
