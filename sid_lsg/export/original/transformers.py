"""Transformers as their original codes name them."""

from collections.abc import Mapping
from typing import Any

from sid_lsg.export.original.layout import Layout, Rules, swap_halves

_QKV = (("q", 0), ("k", 1), ("v", 2))
_SINGLE = r"^single_blocks\.(\d+)\."
_FLUX: Rules = (  # of FLUX.1 and FLUX.2; single blocks come before `_DOUBLE_ATTENTION`
    (r"^time_(?:text|guidance)_embed\.timestep_embedder\.", "time_in."),
    (r"^time_(?:text|guidance)_embed\.guidance_embedder\.", "guidance_in."),
    (r"^time_text_embed\.text_embedder\.", "vector_in."),
    (r"_in\.linear_1\.", "_in.in_layer."),
    (r"_in\.linear_2\.", "_in.out_layer."),
    (r"^context_embedder\.", "txt_in."),
    (r"^x_embedder\.", "img_in."),
    (r"^norm_out\.linear\.", "final_layer.adaLN_modulation.1."),
    (r"^proj_out\.", "final_layer.linear."),
    (r"^single_transformer_blocks\.", "single_blocks."),
    (rf"{_SINGLE}attn\.norm_q\.weight$", r"single_blocks.\1.norm.query_norm.scale"),
    (rf"{_SINGLE}attn\.norm_k\.weight$", r"single_blocks.\1.norm.key_norm.scale"),
)
_DOUBLE_ATTENTION: Rules = (  # of FLUX's blocks with separate weights for image and text
    (r"^transformer_blocks\.", "double_blocks."),
    *((rf"\.attn\.to_{part}\.", f".img_attn.qkv#{i}.") for part, i in _QKV),
    *((rf"\.attn\.add_{part}_proj\.", f".txt_attn.qkv#{i}.") for part, i in _QKV),
    (r"\.attn\.norm_q\.weight$", ".img_attn.norm.query_norm.scale"),
    (r"\.attn\.norm_k\.weight$", ".img_attn.norm.key_norm.scale"),
    (r"\.attn\.norm_added_q\.weight$", ".txt_attn.norm.query_norm.scale"),
    (r"\.attn\.norm_added_k\.weight$", ".txt_attn.norm.key_norm.scale"),
    (r"\.attn\.to_out\.0\.", ".img_attn.proj."),
    (r"\.attn\.to_add_out\.", ".txt_attn.proj."),
)


def sd3(config: Mapping[str, Any]) -> Layout:
    """Return the original names of an `SD3Transformer2DModel` (MMDiT).

    Args:
        config: The transformer's configuration.
    """
    image, text = "x_block.", "context_block."
    rules: Rules = (
        (r"^pos_embed\.pos_embed$", "pos_embed"),
        (r"^pos_embed\.proj\.", "x_embedder.proj."),
        (r"^time_text_embed\.timestep_embedder\.linear_1\.", "t_embedder.mlp.0."),
        (r"^time_text_embed\.timestep_embedder\.linear_2\.", "t_embedder.mlp.2."),
        (r"^time_text_embed\.text_embedder\.linear_1\.", "y_embedder.mlp.0."),
        (r"^time_text_embed\.text_embedder\.linear_2\.", "y_embedder.mlp.2."),
        (r"^context_embedder\.", "context_embedder."),
        (r"^norm_out\.linear\.", "final_layer.adaLN_modulation.1."),
        (r"^proj_out\.", "final_layer.linear."),
        (r"^transformer_blocks\.", "joint_blocks."),
        *((rf"\.(attn2?)\.to_{part}\.", rf".{image}\1.qkv#{i}.") for part, i in _QKV),
        *((rf"\.attn\.add_{part}_proj\.", f".{text}attn.qkv#{i}.") for part, i in _QKV),
        (r"\.(attn2?)\.norm_([qk])\.", rf".{image}\1.ln_\2."),
        (r"\.attn\.norm_added_([qk])\.", rf".{text}attn.ln_\1."),
        (r"\.(attn2?)\.to_out\.0\.", rf".{image}\1.proj."),
        (r"\.attn\.to_add_out\.", f".{text}attn.proj."),
        (r"\.norm1\.linear\.", f".{image}adaLN_modulation.1."),
        (r"\.norm1_context\.linear\.", f".{text}adaLN_modulation.1."),
        (r"\.ff\.net\.0\.proj\.", f".{image}mlp.fc1."),
        (r"\.ff\.net\.2\.", f".{image}mlp.fc2."),
        (r"\.ff_context\.net\.0\.proj\.", f".{text}mlp.fc1."),
        (r"\.ff_context\.net\.2\.", f".{text}mlp.fc2."),
    )
    last = config["num_layers"] - 1  # its text branch ends in a norm of scale and shift alone
    return Layout(
        rules,
        {
            r"^final_layer\.adaLN_modulation\.": swap_halves,
            rf"^joint_blocks\.{last}\.{text}adaLN_modulation\.": swap_halves,
        },
    )


def flux(config: Mapping[str, Any]) -> Layout:
    """Return the original names of a `FluxTransformer2DModel`.

    Args:
        config: The transformer's configuration.
    """
    del config  # the names do not depend on it
    rules: Rules = (
        *_FLUX,
        *((rf"{_SINGLE}attn\.to_{part}\.", rf"single_blocks.\1.linear1#{i}.") for part, i in _QKV),
        (rf"{_SINGLE}proj_mlp\.", r"single_blocks.\1.linear1#3."),
        (rf"{_SINGLE}proj_out\.", r"single_blocks.\1.linear2."),
        (rf"{_SINGLE}norm\.linear\.", r"single_blocks.\1.modulation.lin."),
        *_DOUBLE_ATTENTION,
        (r"\.norm1\.linear\.", ".img_mod.lin."),
        (r"\.norm1_context\.linear\.", ".txt_mod.lin."),
        (r"\.ff\.net\.0\.proj\.", ".img_mlp.0."),
        (r"\.ff\.net\.2\.", ".img_mlp.2."),
        (r"\.ff_context\.net\.0\.proj\.", ".txt_mlp.0."),
        (r"\.ff_context\.net\.2\.", ".txt_mlp.2."),
    )
    return Layout(rules, {r"^final_layer\.adaLN_modulation\.": swap_halves})


def flux2(config: Mapping[str, Any]) -> Layout:
    """Return the original names of a `Flux2Transformer2DModel`.

    Args:
        config: The transformer's configuration.
    """
    del config  # the names do not depend on it
    rules: Rules = (
        *_FLUX,
        (r"^((?:double|single)_stream_modulation\w*)\.linear\.", r"\1.lin."),
        (rf"{_SINGLE}attn\.to_qkv_mlp_proj\.", r"single_blocks.\1.linear1."),
        (rf"{_SINGLE}attn\.to_out\.", r"single_blocks.\1.linear2."),
        *_DOUBLE_ATTENTION,
        (r"\.ff\.linear_in\.", ".img_mlp.0."),
        (r"\.ff\.linear_out\.", ".img_mlp.2."),
        (r"\.ff_context\.linear_in\.", ".txt_mlp.0."),
        (r"\.ff_context\.linear_out\.", ".txt_mlp.2."),
    )
    return Layout(rules, {r"^final_layer\.adaLN_modulation\.": swap_halves})


def z_image(config: Mapping[str, Any]) -> Layout:
    """Return the original names of a `ZImageTransformer2DModel`.

    Args:
        config: The transformer's configuration.
    """
    (patch,), (frames,) = config["all_patch_size"], config["all_f_patch_size"]
    rules: Rules = (
        (r"", ""),  # most names are the same
        (rf"^all_(final_layer|x_embedder)\.{patch}-{frames}\.", r"\1."),
        *((rf"\.attention\.to_{part}\.", f".attention.qkv#{i}.") for part, i in _QKV),
        (r"\.attention\.to_out\.0\.", ".attention.out."),
        (r"\.attention\.norm_([qk])\.", r".attention.\1_norm."),
    )
    return Layout(rules)


def qwen_image(config: Mapping[str, Any]) -> Layout:
    """Return the original names of a `QwenImageTransformer2DModel`, which diffusers keeps.

    Args:
        config: The transformer's configuration.
    """
    del config  # the names do not depend on it
    return Layout(((r"", ""),))
