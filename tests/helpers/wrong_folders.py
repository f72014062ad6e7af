"""Wrong model folders, made from a whole one: parts removed, swapped, cut and misconfigured."""

import json
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file

from tests.helpers.paths import GOLDEN, GOLDEN_FLOW
from tests.helpers.tiny_pipelines import tiny_pipeline

Spoil = Callable[[Path], None]


class Wrong(NamedTuple):
    """A way to spoil a model's folder, and what the message must name."""

    name: str
    spoil: Spoil
    said: str


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

_FILE = {True: "diffusion_pytorch_model.safetensors", False: "model.safetensors"}


def wrong_folders(parts: Parts) -> Iterator[Wrong]:
    """Yield the ways to spoil a family's folder."""
    networks = dict.fromkeys(parts.networks, True) | dict.fromkeys(parts.encoders, False)
    for name, of_diffusers in networks.items():
        weights = Path(name) / _FILE[of_diffusers]
        yield Wrong(f"{name} removed", _remove(name), name)
        yield Wrong(f"{name} without config", _remove(f"{name}/config.json"), name)
        yield Wrong(f"{name} without weights", _remove(str(weights)), name)
        for size in (0, 7, 3000):
            yield Wrong(f"{name} cut to {size} bytes", _cut(weights, size), name)
        yield Wrong(f"{name} with an empty config", _write(f"{name}/config.json", ""), name)
        yield Wrong(f"{name} with a list as config", _write(f"{name}/config.json", "[]"), name)
        yield Wrong(f"{name} with NaN", _change(weights, _with_nan), "not finite")
        yield Wrong(f"{name} with infinity", _change(weights, _with_infinity), "not finite")
        yield Wrong(f"{name} lacks a weight", _change(weights, _without_one), name)
        yield Wrong(f"{name} has a weight more", _change(weights, _with_more), "surplus")
        yield Wrong(f"{name} only as fp16", _variant(weights), "fp16")
        yield Wrong(f"{name} only as .bin", _pickle(weights), ".bin")
        yield Wrong(f"{name} of other weights", _change(weights, _transposed), name)
    for name, fields in (parts.networks | parts.encoders).items():
        for field, values in fields.items():
            for value in values:
                path = f"{name}/config.json"
                # Weights' shapes show some fields: the message then names the part's weight.
                yield Wrong(f"{name}.{field}={value}", _edit(path, field, value), name)
    for name, kind in parts.foreign.items():
        config = {"_class_name": kind, "_diffusers_version": "0.30.0", "in_channels": 16}
        yield Wrong(f"{name} of a {kind}", _write(f"{name}/config.json", json.dumps(config)), kind)
    for field, values in parts.scheduler.items():
        for value in values:
            path = "scheduler/scheduler_config.json"
            yield Wrong(f"scheduler.{field}={value}", _edit(path, field, value), "scheduler")
    yield Wrong("scheduler removed", _remove("scheduler"), "scheduler")
    yield Wrong("an empty scheduler", _write("scheduler/scheduler_config.json", ""), "scheduler")
    for name in parts.tokenizers:
        yield from _wrong_tokenizers(name)
    for name in parts.others:
        yield Wrong(f"{name} removed", _remove(name), name)
        yield Wrong(f"{name} without its file", _remove(f"{name}/tokenizer.json"), name)
        yield Wrong(f"{name} with an empty file", _write(f"{name}/tokenizer.json", ""), name)
        yield Wrong(f"{name} cut", _cut(Path(name) / "tokenizer.json", 900), name)
        yield Wrong(f"{name} without pad_token", _edit(_config(name), "pad_token", None), name)
    yield Wrong("an empty index", _write("model_index.json", ""), "model_index.json")
    yield Wrong("an index without a pipeline", _write("model_index.json", "{}"), "")


def _wrong_tokenizers(name: str) -> Iterator[Wrong]:
    config = _config(name)
    yield Wrong(f"{name} removed", _remove(name), name)
    yield Wrong(f"{name} without vocab.json", _remove(f"{name}/vocab.json"), name)
    yield Wrong(f"{name} without merges.txt", _remove(f"{name}/merges.txt"), name)
    yield Wrong(f"{name} with no merges", _write(f"{name}/merges.txt", "#version: 0.2\n"), name)
    yield Wrong(f"{name} with half the vocabulary", _halve(f"{name}/vocab.json"), name)
    yield Wrong(f"{name} with a token more", _add_token(f"{name}/vocab.json"), name)
    yield Wrong(f"{name} of T5", _edit(config, "tokenizer_class", "T5Tokenizer"), "T5Tokenizer")
    yield Wrong(f"{name} too long", _edit(config, "model_max_length", 512), name)
    yield Wrong(f"{name} of no length", _edit(config, "model_max_length", None), name)
    for field, text in {"eos_token": "<|startoftext|>", "pad_token": "<pad>"}.items():
        yield Wrong(f"{name}.{field}={text}", _edit_special(name, field, text), name)


def _config(tokenizer: str) -> str:
    return f"{tokenizer}/tokenizer_config.json"


def _remove(path: str) -> Spoil:
    def spoil(folder: Path) -> None:
        place = folder / path
        shutil.rmtree(place) if place.is_dir() else place.unlink()

    return spoil


def _write(path: str, text: str) -> Spoil:
    return lambda folder: (folder / path).write_text(text) and None  # type: ignore[func-returns-value]


def _edit(path: str, field: str, value: Any) -> Spoil:
    def spoil(folder: Path) -> None:
        config = part = json.loads((folder / path).read_text())
        *groups, name = field.split(".")
        for group in groups:
            part = part[group]
        part[name] = value
        (folder / path).write_text(json.dumps(config))

    return spoil


def _edit_special(name: str, field: str, text: str) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / name / "special_tokens_map.json").unlink(missing_ok=True)  # it would win
        _edit(f"{name}/tokenizer_config.json", field, text)(folder)

    return spoil


def _cut(path: Path, size: int) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / path).write_bytes((folder / path).read_bytes()[:size])

    return spoil


def _change(path: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Spoil:
    def spoil(folder: Path) -> None:
        weights = load_file(folder / path)
        change(weights)
        save_file(weights, folder / path, {"format": "pt"})

    return spoil


def _variant(path: Path) -> Spoil:
    return lambda folder: (
        (folder / path).rename((folder / path).with_suffix(".fp16.safetensors")) and None
    )  # type: ignore[func-returns-value]


def _pickle(path: Path) -> Spoil:
    def spoil(folder: Path) -> None:
        old = folder / path
        stem = "pytorch_model" if old.stem == "model" else old.stem
        torch.save(load_file(old), old.with_name(f"{stem}.bin"))
        old.unlink()

    return spoil


def _halve(path: str) -> Spoil:
    def spoil(folder: Path) -> None:
        tokens = json.loads((folder / path).read_text())
        kept = {text: number for text, number in tokens.items() if number % 2 or "<|" in text}
        (folder / path).write_text(json.dumps(kept))

    return spoil


def _add_token(path: str) -> Spoil:
    def spoil(folder: Path) -> None:
        tokens = json.loads((folder / path).read_text())
        (folder / path).write_text(json.dumps(tokens | {"<more>": len(tokens)}))

    return spoil


def _with_nan(weights: dict[str, torch.Tensor]) -> None:
    next(value for value in weights.values() if value.is_floating_point()).view(-1)[0] = torch.nan


def _with_infinity(weights: dict[str, torch.Tensor]) -> None:
    weights[max(weights)].view(-1)[-1] = -torch.inf


def _without_one(weights: dict[str, torch.Tensor]) -> None:
    weights.pop(max(weights, key=lambda name: weights[name].numel()))


def _with_more(weights: dict[str, torch.Tensor]) -> None:
    weights["surplus.weight"] = torch.zeros(3)


def _transposed(weights: dict[str, torch.Tensor]) -> None:
    name = max(weights, key=lambda name: weights[name].numel())
    weights[name] = weights[name].flatten()[:-1].clone()
