"""The UNet and autoencoder of Stable Diffusion 1, 2 and XL as the original code names them.

The original UNet numbers its blocks through (`input_blocks.4.1`), where diffusers counts per
resolution (`down_blocks.1.attentions.0`), so the numbers follow from the configuration.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from sid_lsg.export.original.layout import Layout, Rules, pointwise

_RESNET: Rules = (
    (r"\.norm1\.", ".in_layers.0."),
    (r"\.conv1\.", ".in_layers.2."),
    (r"\.time_emb_proj\.", ".emb_layers.1."),
    (r"\.norm2\.", ".out_layers.0."),
    (r"\.conv2\.", ".out_layers.3."),
    (r"\.conv_shortcut\.", ".skip_connection."),
)
_ENDS: Rules = (
    (r"^time_embedding\.linear_1\.", "time_embed.0."),
    (r"^time_embedding\.linear_2\.", "time_embed.2."),
    (r"^add_embedding\.linear_1\.", "label_emb.0.0."),
    (r"^add_embedding\.linear_2\.", "label_emb.0.2."),
    (r"^conv_in\.", "input_blocks.0.0."),
    (r"^conv_norm_out\.", "out.0."),
    (r"^conv_out\.", "out.2."),
)
_AUTOENCODER: Rules = (
    (r"^(quant_conv|post_quant_conv)\.", r"\1."),
    (r"^(en|de)coder\.conv_(in|out)\.", r"\1coder.conv_\2."),
    (r"\.conv_norm_out\.", ".norm_out."),
    (r"\.conv_shortcut\.", ".nin_shortcut."),
    (r"\.down_blocks\.(\d+)\.resnets\.", r".down.\1.block."),
    (r"\.down_blocks\.(\d+)\.downsamplers\.0\.", r".down.\1.downsample."),
    (r"\.mid_block\.resnets\.0\.", ".mid.block_1."),
    (r"\.mid_block\.resnets\.1\.", ".mid.block_2."),
    (r"\.mid_block\.attentions\.0\.", ".mid.attn_1."),
    (r"\.attn_1\.group_norm\.", ".attn_1.norm."),
    (r"\.attn_1\.to_([qkv])\.", r".attn_1.\1."),
    (r"\.attn_1\.to_out\.0\.", ".attn_1.proj_out."),
)


def unet(config: Mapping[str, Any]) -> Layout:
    """Return the original names of a `UNet2DConditionModel`.

    Args:
        config: The UNet's configuration.
    """
    # Attention layers also have norm1 and norm2, so the names inside residual blocks come first.
    resnets = [(rf"^((?:\w+\.)*?resnets\.\d+){old}", rf"\1{new}") for old, new in _RESNET]
    return Layout((*_ENDS, *resnets, *_blocks(config)))


def autoencoder(config: Mapping[str, Any]) -> Layout:
    """Return the original names of an `AutoencoderKL`.

    Args:
        config: The autoencoder's configuration.
    """
    last = len(config["up_block_types"]) - 1  # the original counts the decoder's from the image
    up = []
    for block in range(last + 1):
        old, new = rf"\.up_blocks\.{block}", f".up.{last - block}"
        up.append((rf"{old}\.resnets\.", f"{new}.block."))
        up.append((rf"{old}\.upsamplers\.0\.", f"{new}.upsample."))
    return Layout((*_AUTOENCODER, *up), {r"\.attn_1\.(q|k|v|proj_out)\.weight$": pointwise})


def _blocks(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the rules that number the blocks through."""
    down, up = config["down_block_types"], config["up_block_types"]
    count = config["layers_per_block"]
    counts = [count] * len(down) if isinstance(count, int) else [*count]
    place = 1  # after the first convolution
    for block, layers in enumerate(counts):
        for layer in range(layers):
            yield _rule(f"down_blocks.{block}.resnets.{layer}", f"input_blocks.{place}.0")
            yield _rule(f"down_blocks.{block}.attentions.{layer}", f"input_blocks.{place}.1")
            place += 1
        if block < len(down) - 1:
            yield _rule(f"down_blocks.{block}.downsamplers.0.conv", f"input_blocks.{place}.0.op")
            place += 1
    for number, part in enumerate(("resnets.0", "attentions.0", "resnets.1")):
        yield _rule(f"mid_block.{part}", f"middle_block.{number}")
    place = 0
    for block, (kind, layers) in enumerate(zip(up, reversed(counts), strict=True)):
        for layer in range(layers + 1):
            yield _rule(f"up_blocks.{block}.resnets.{layer}", f"output_blocks.{place}.0")
            yield _rule(f"up_blocks.{block}.attentions.{layer}", f"output_blocks.{place}.1")
            place += 1
        after = 2 if "Attn" in kind else 1
        yield _rule(
            f"up_blocks.{block}.upsamplers.0.conv", f"output_blocks.{place - 1}.{after}.conv"
        )


def _rule(old: str, new: str) -> tuple[str, str]:
    return f"^{old.replace('.', chr(92) + '.')}" + r"\.", f"{new}."
