"""Wrong values of each family's configs, and the whole folders to spoil with them."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from tests.helpers.paths import GOLDEN, GOLDEN_FLOW
from tests.helpers.tiny_pipelines import tiny_pipeline


class Parts(NamedTuple):
    """Describe what to spoil in a family's folders.

    Attributes:
        make: Finds or makes the whole folder.
        networks: Networks of diffusers, with config fields and the wrong values to try.
        encoders: Text encoders, with config fields and the wrong values to try.
        tokenizers: Tokenizers of CLIP, by their text encoder.
        scheduler: Fields of the scheduler's config, and the wrong values to try.
        foreign: Config of a network of another family, and the networks that it replaces.
        others: Tokenizers of other kinds, of one file.
    """

    make: Callable[[], Path]
    networks: dict[str, dict[str, list[Any]]]
    encoders: dict[str, dict[str, list[Any]]]
    tokenizers: tuple[str, ...]
    scheduler: dict[str, list[Any]]
    foreign: dict[str, str]
    others: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """Return the whole folder."""
        return self.make()


def _recorded(name: str) -> Callable[[], Path]:
    return lambda: GOLDEN_FLOW / "pipelines" / name


_ENCODER: dict[str, list[Any]] = {
    "vocab_size": [700, 100],
    "max_position_embeddings": [16, 80],
    "hidden_size": [48],
    "intermediate_size": [48],
    "num_hidden_layers": [1, 3],
    "eos_token_id": [535],
    "add_cross_attention": [True],
    "a_new_field": ["on"],
    "quantization_config": [{"load_in_8bit": True}],
}
_T5: dict[str, list[Any]] = {
    "vocab_size": [700, 100],
    "d_model": [48],
    "d_ff": [64],
    "num_layers": [1, 3],
    "num_heads": [3],
    "add_cross_attention": [True],
    "a_new_field": ["on"],
    "quantization_config": [{"load_in_8bit": True}],
}
_VAE: dict[str, list[Any]] = {
    "latent_channels": [8],
    "in_channels": [4],
    "out_channels": [4],
    "scaling_factor": [0, None, "x", -1.0],
    "block_out_channels": [[8, 8], None],
    "layers_per_block": [2],
    "a_new_field": [True],
}

_UNET: dict[str, list[Any]] = {
    "in_channels": [9],
    "out_channels": [8],
    "cross_attention_dim": [48],
    "time_cond_proj_dim": [32],
    "encoder_hid_dim": [48],
    "addition_embed_type": ["text", "image"],
    "class_embed_type": ["timestep", "identity"],
    "num_class_embeds": [10],
    "dual_cross_attention": [True],
    "attention_type": ["gated"],
    "time_embedding_type": ["fourier"],
    "layers_per_block": [4],
    "block_out_channels": [[16, 64], [16], "wide"],
    "down_block_types": [["Unknown", "DownBlock2D"]],
    "norm_num_groups": [7],
    "act_fn": ["unknown"],
    "a_new_field": [3],
}
_BETAS: dict[str, list[Any]] = {
    "_class_name": ["FlowMatchEulerDiscreteScheduler"],
    "prediction_type": ["sample", "flow_prediction"],
    "beta_schedule": ["unknown"],
    "beta_end": [2.0, None],
    "trained_betas": [[0.1, -0.2]],
    "num_train_timesteps": [0],
}
_UNSHIFTED = {"shift_factor": [0.1]}
_FLOW: dict[str, list[Any]] = {"_class_name": ["DDIMScheduler", "PNDMScheduler"]}
_QWEN: dict[str, list[Any]] = {
    "vocab_size": [700, 100],
    "hidden_size": [48],
    "intermediate_size": [48],
    "num_hidden_layers": [1],
    "num_key_value_heads": [2],
    "head_dim": [4],
    "eos_token_id": [7],
    "add_cross_attention": [True],
    "a_new_field": ["on"],
    "quantization_config": [{"load_in_8bit": True}],
}

FAMILIES = {
    "tiny_sd": Parts(
        lambda: GOLDEN / "tiny_sd",
        networks={
            "unet": _UNET,
            # The last scale is SDXL's.
            "vae": _VAE
            | _UNSHIFTED
            | {"latents_mean": [[0.0] * 4], "scaling_factor": [0, None, "x", -1.0, 0.13025]},
        },
        encoders={"text_encoder": _ENCODER},
        tokenizers=("tokenizer",),
        scheduler=_BETAS,
        foreign={"unet": "SD3Transformer2DModel", "vae": "AutoencoderTiny"},
    ),
    "tiny_sdxl": Parts(
        _recorded("tiny_sdxl"),
        networks={
            "unet": _UNET
            | {"addition_embed_type": [None, "image"], "addition_time_embed_dim": [7]},
            "vae": _VAE | _UNSHIFTED,
        },
        encoders={"text_encoder": _ENCODER, "text_encoder_2": _ENCODER | {"projection_dim": [48]}},
        tokenizers=("tokenizer", "tokenizer_2"),
        scheduler=_BETAS,
        foreign={"unet": "SD3Transformer2DModel", "vae": "AutoencoderTiny"},
    ),
    "tiny_sd3": Parts(
        _recorded("tiny_sd3"),
        networks={
            "transformer": {
                "in_channels": [8],
                "out_channels": [32],
                "joint_attention_dim": [48],
                "pooled_projection_dim": [48],
                "caption_projection_dim": [48],
                "num_layers": [1, 5],
                "qk_norm": [None, "unknown"],
                "dual_attention_layers": [[], [1]],
                "patch_size": [4],
                "a_new_field": [3],
            },
            "vae": _VAE | {"latents_mean": [[0.0] * 16]},
        },
        encoders={"text_encoder": _ENCODER, "text_encoder_2": _ENCODER | {"projection_dim": [48]}},
        tokenizers=("tokenizer", "tokenizer_2"),
        scheduler=_FLOW,
        foreign={"transformer": "UNet2DConditionModel", "vae": "AutoencoderTiny"},
    ),
    "tiny_sana": Parts(
        _recorded("tiny_sana"),
        networks={
            "transformer": {
                "in_channels": [9],
                "out_channels": [16],
                "caption_channels": [48],
                "num_layers": [1, 5],
                "qk_norm": ["rms_norm_across_heads", "unknown"],
                "mlp_ratio": [4],
                "patch_size": [2],
                "guidance_embeds": [True],
                "timestep_scale": [0, None],
                "a_new_field": [3],
            },
            "vae": {
                "latent_channels": [16],
                "in_channels": [4],
                "scaling_factor": [0, None, "x", -1.0],
                "encoder_block_out_channels": [[8, 8], None],
                "a_new_field": [True],
            },
        },
        encoders={
            "text_encoder": {
                name: _ENCODER[name] for name in _ENCODER if name != "max_position_embeddings"
            }
            | {"num_key_value_heads": [2], "head_dim": [4]}
        },
        tokenizers=(),
        scheduler={},
        foreign={"transformer": "SD3Transformer2DModel", "vae": "AutoencoderKL"},
    ),
    "tiny_flux": Parts(
        _recorded("tiny_flux"),
        networks={
            "transformer": {
                "in_channels": [384, 16],
                "out_channels": [32],
                "joint_attention_dim": [48],
                "pooled_projection_dim": [48],
                "num_layers": [2, 5],
                "patch_size": [2],
                "guidance_embeds": [False],
                "axes_dims_rope": [[4, 4, 4]],
                "a_new_field": [3],
            },
            "vae": _VAE | {"latents_mean": [[0.0] * 16]},
        },
        encoders={"text_encoder": _ENCODER, "text_encoder_2": _T5},
        tokenizers=("tokenizer",),
        scheduler=_FLOW,
        foreign={"transformer": "SD3Transformer2DModel", "vae": "AutoencoderTiny"},
    ),
    "tiny_pixart": Parts(
        _recorded("tiny_pixart"),
        networks={
            "transformer": {
                "in_channels": [8],
                "out_channels": [16],
                "caption_channels": [48],
                "num_layers": [1, 5],
                "norm_type": ["ada_norm", "unknown"],
                "attention_type": ["gated"],
                "patch_size": [4],
                "use_additional_conditions": [True],
                "a_new_field": [3],
            },
            "vae": _VAE | _UNSHIFTED,
        },
        encoders={"text_encoder": _T5},
        tokenizers=(),
        scheduler=_BETAS,
        foreign={"transformer": "SD3Transformer2DModel", "vae": "AutoencoderTiny"},
    ),
    "flux2": Parts(
        partial(tiny_pipeline, "flux2"),
        networks={
            "transformer": {
                "in_channels": [8],
                "out_channels": [32],
                "joint_attention_dim": [32],
                "num_layers": [2],
                "num_single_layers": [0, 3],
                "patch_size": [2],
                "guidance_embeds": [True],
                "axes_dims_rope": [[4, 4, 4]],
                "a_new_field": [3],
            },
            "vae": {name: _VAE[name] for name in _VAE if name != "scaling_factor"}
            | {"patch_size": [[1, 1]], "batch_norm_eps": [0, None, "x"]},
        },
        encoders={"text_encoder": _QWEN | {"num_hidden_layers": [20, 40]}},
        tokenizers=(),
        scheduler=_FLOW,
        foreign={"transformer": "FluxTransformer2DModel", "vae": "AutoencoderKL"},
        others=("tokenizer",),
    ),
    "qwen_image": Parts(
        partial(tiny_pipeline, "qwen_image"),
        networks={
            "transformer": {
                "in_channels": [8],
                "out_channels": [8],
                "joint_attention_dim": [32],
                "num_layers": [1, 5],
                "patch_size": [1],
                "guidance_embeds": [True],
                "axes_dims_rope": [[4, 4, 4]],
                "zero_cond_t": [True],
                "use_additional_t_cond": [True],
                "use_layer3d_rope": [True],
                "a_new_field": [3],
            },
            "vae": {
                "z_dim": [8],
                "base_dim": [16],
                "input_channels": [4],
                "dim_mult": [[1, 1], None],
                "num_res_blocks": [2],
                "latents_mean": [[0.0], None],
                "latents_std": [[1.0] * 16, "wide"],
                "a_new_field": [True],
            },
        },
        encoders={
            "text_encoder": {
                **{f"text_config.{name}": _QWEN[name] for name in _QWEN if name != "head_dim"},
                "add_cross_attention": [True],
                "a_new_field": ["on"],
                "quantization_config": [{"load_in_8bit": True}],
            }
        },
        tokenizers=(),
        scheduler=_FLOW,
        foreign={"transformer": "SD3Transformer2DModel", "vae": "AutoencoderKL"},
        others=("tokenizer",),
    ),
    "z_image": Parts(
        partial(tiny_pipeline, "z_image"),
        networks={
            "transformer": {
                "in_channels": [8],
                "dim": [64],
                "n_layers": [1, 5],
                "n_refiner_layers": [2],
                "n_heads": [3],
                "cap_feat_dim": [32],
                "all_patch_size": [[4], [2, 4]],
                "all_f_patch_size": [[2]],
                "axes_dims": [[4, 4, 4]],
                "siglip_feat_dim": [16],
                "a_new_field": [3],
            },
            "vae": _VAE | {"latents_mean": [[0.0] * 4]},
        },
        encoders={"text_encoder": _QWEN},
        tokenizers=(),
        scheduler=_FLOW,
        foreign={"transformer": "FluxTransformer2DModel", "vae": "AutoencoderTiny"},
        others=("tokenizer",),
    ),
}
"""The folders to spoil; a further family is one entry."""
