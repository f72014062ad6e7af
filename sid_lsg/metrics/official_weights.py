"""Build transformers models from weights under OpenCLIP's and BLIP's names.

Model sizes follow from the weights' shapes. Tested against independent implementations at a small
size, but not on the official weights.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import (
    BlipTextConfig,
    BlipTextModel,
    BlipVisionConfig,
    BlipVisionModel,
    CLIPConfig,
    CLIPModel,
)

Weights = Mapping[str, Tensor]
Model = TypeVar("Model", bound=nn.Module)
_Origin = Callable[[str], tuple[str, Callable[[Tensor], Tensor]]]
"""Map transformers' name to the official name and a conversion of the official tensor."""

_OPEN_CLIP = {
    r"^vision_model\.embeddings\.class_embedding$": "visual.class_embedding",
    r"^vision_model\.embeddings\.patch_embedding\.": "visual.conv1.",
    r"^vision_model\.embeddings\.position_embedding\.weight$": "visual.positional_embedding",
    r"^vision_model\.pre_layrnorm\.": "visual.ln_pre.",
    r"^vision_model\.post_layernorm\.": "visual.ln_post.",
    r"^visual_projection\.weight$": "visual.proj",
    r"^text_model\.embeddings\.token_embedding\.": "token_embedding.",
    r"^text_model\.embeddings\.position_embedding\.weight$": "positional_embedding",
    r"^text_model\.final_layer_norm\.": "ln_final.",
    r"^text_projection\.weight$": "text_projection",
    r"^vision_model\.encoder\.layers\.": "visual.transformer.resblocks.",
    r"^text_model\.encoder\.layers\.": "transformer.resblocks.",
    r"\.layer_norm([12])\.": r".ln_\1.",
    r"\.self_attn\.[qkv]_proj\.(weight|bias)$": r".attn.in_proj_\1",
    r"\.self_attn\.out_proj\.": ".attn.out_proj.",
    r"\.mlp\.fc1\.": ".mlp.c_fc.",
    r"\.mlp\.fc2\.": ".mlp.c_proj.",
}
_BLIP_VISION = {
    r"^embeddings\.class_embedding$": "cls_token",
    r"^embeddings\.position_embedding$": "pos_embed",
    r"^embeddings\.patch_embedding\.": "patch_embed.proj.",
    r"^encoder\.layers\.": "blocks.",
    r"\.layer_norm([12])\.": r".norm\1.",
    r"\.self_attn\.qkv\.": ".attn.qkv.",
    r"\.self_attn\.projection\.": ".attn.proj.",
    r"^post_layernorm\.": "norm.",
}


def open_clip_model(weights: Weights, head_widths: tuple[int, int]) -> CLIPModel:
    """Build transformers' CLIP, with GELU, from the weights of an OpenCLIP ViT.

    Args:
        weights: Exactly the model's weights, under OpenCLIP's names.
        head_widths: Attention head widths for images and texts; shapes do not show them.

    Returns:
        The model in float32. It pools a text at the first occurrence of the vocabulary's last
        token.

    Raises:
        ValueError: If a weight is missing, unexpected or of another shape; names the first.
    """
    width, _, patch, _ = _shape(weights, "visual.conv1.weight", 4)
    vision = _tower(weights, "visual.transformer.resblocks.", ".mlp.c_fc", width, head_widths[0])
    vision |= {
        "patch_size": patch,
        "image_size": _image_size(_shape(weights, "visual.positional_embedding", 2)[0], patch),
        "hidden_act": "gelu",  # transformers' default is OpenAI's approximation
    }
    vocabulary, width = _shape(weights, "token_embedding.weight", 2)
    text = _tower(weights, "transformer.resblocks.", ".mlp.c_fc", width, head_widths[1])
    text |= {
        "vocab_size": vocabulary,
        "max_position_embeddings": _shape(weights, "positional_embedding", 2)[0],
        "bos_token_id": vocabulary - 2,
        "eos_token_id": vocabulary - 1,
        "pad_token_id": 0,
        "hidden_act": "gelu",
    }
    dimension = _shape(weights, "visual.proj", 2)[1]
    config = CLIPConfig(vision_config=vision, text_config=text, projection_dim=dimension)

    def origin(name: str) -> tuple[str, Callable[[Tensor], Tensor]]:
        official = _rename(name, _OPEN_CLIP)
        if third := re.search(r"\.([qkv])_proj\.", name):
            return official, lambda joined: joined.tensor_split(3)["qkv".index(third[1])]
        return official, Tensor.t if official in ("visual.proj", "text_projection") else _itself

    return _load(CLIPModel, config, weights, origin)


def blip_models(
    weights: Weights, head_widths: tuple[int, int]
) -> tuple[BlipVisionModel, BlipTextModel]:
    """Build transformers' BLIP: a ViT, and a BERT that attends to its output in each layer.

    Args:
        weights: ImageReward's weights. Only `blip.visual_encoder` and `blip.text_encoder` are
            read; projections from BLIP's pretraining are ignored.
        head_widths: Attention head widths for images and texts; shapes do not show them.

    Returns:
        Both models in float32.

    Raises:
        ValueError: If a weight is missing, unexpected or of another shape; names the first.
    """
    v_name, t_name = "blip.visual_encoder.", "blip.text_encoder."
    v_weights = {name: value for name, value in weights.items() if name.startswith(v_name)}
    t_weights = {name: value for name, value in weights.items() if name.startswith(t_name)}
    t_weights.pop(f"{t_name}embeddings.position_ids", None)  # a buffer of 0, 1, 2, ...
    v_width, _, patch, _ = _shape(v_weights, f"{v_name}patch_embed.proj.weight", 4)
    vision = BlipVisionConfig(
        **_tower(v_weights, f"{v_name}blocks.", ".mlp.fc1", v_width, head_widths[0]),
        patch_size=patch,
        image_size=_image_size(_shape(v_weights, f"{v_name}pos_embed", 3)[1], patch),
        layer_norm_eps=1e-6,  # BLIP's; transformers' default is 1e-5
    )
    vocabulary, width = _shape(t_weights, f"{t_name}embeddings.word_embeddings.weight", 2)
    positions = _shape(t_weights, f"{t_name}embeddings.position_embeddings.weight", 2)[0]
    text = BlipTextConfig(
        **_tower(
            t_weights, f"{t_name}encoder.layer.", ".intermediate.dense", width, head_widths[1]
        ),
        encoder_hidden_size=v_width,
        vocab_size=vocabulary,
        max_position_embeddings=positions,
        layer_norm_eps=1e-12,
        bos_token_id=None,
        sep_token_id=None,
        is_decoder=True,  # adds cross-attention; `forward` applies no causal mask
    )
    return (
        _load(
            BlipVisionModel,
            vision,
            v_weights,
            lambda n: (v_name + _rename(n, _BLIP_VISION), _itself),
        ),
        _load(
            BlipTextModel, text, t_weights, lambda n: (t_name + n, _itself), add_pooling_layer=False
        ),
    )


def reward_head(weights: Weights, width: int) -> nn.Sequential:
    """Build ImageReward's head: five linear layers without activations; training adds dropout.

    Args:
        weights: ImageReward's weights; only `mlp` is read.
        width: Number of input features.

    Raises:
        ValueError: If a weight is missing, unexpected or of another shape; names the first.
    """
    layers = []
    names = [f"mlp.layers.{number}." for number in (0, 2, 4, 6, 7)]
    for name in names:
        shape = _shape(weights, f"{name}weight", 2)
        if shape[1] != width or _shape(weights, f"{name}bias", 1) != shape[:1]:
            raise ValueError(f"its {name}weight of shape {shape} does not fit the rest")
        with torch.device("meta"):
            layer = nn.Linear(shape[1], shape[0])
        state = {part: _copy(weights[name + part]) for part in ("weight", "bias")}
        layer.load_state_dict(state, assign=True)
        layers.append(layer)
        width = shape[0]
    if width != 1:
        raise ValueError(f"its {names[-1]}weight gives {width} scores per image, not 1")
    own = [name for name in weights if name.startswith("mlp.")]
    _reject_unexpected(weights, own, {name + part for name in names for part in ("weight", "bias")})
    return nn.Sequential(*layers)


def _load(
    kind: type[Model], config: Any, weights: Weights, origin: _Origin, **kwargs: bool
) -> Model:
    """Build a model in float32 with exactly these weights, without drawing random numbers."""
    with torch.device("meta"):
        expected = {n: value.shape for n, value in kind(config, **kwargs).state_dict().items()}
    state, used = {}, set()
    for name, shape in expected.items():
        official, make = origin(name)
        if official not in weights:
            raise ValueError(f"it lacks {official}")
        found = weights[official]
        value = make(found)
        if value.shape != shape:
            raise ValueError(f"its {official} of shape {list(found.shape)} does not fit the rest")
        state[name] = _copy(value)
        used.add(official)
    _reject_unexpected(weights, list(weights), used)
    model: Model = kind.from_pretrained(  # type: ignore[attr-defined]
        None, config=config, state_dict=state, dtype=torch.float32, **kwargs
    )
    return model


def _reject_unexpected(weights: Weights, names: Sequence[str], used: set[str]) -> None:
    if left := [name for name in names if name not in used]:
        found = list(weights[left[0]].shape)
        raise ValueError(f"it contains {left[0]} of shape {found}, which this model does not have")


def _copy(value: Tensor) -> Tensor:
    """Copy to float32: the tensor may be mapped from a file that changes later."""
    return value.to(torch.float32, copy=True).contiguous()


def _tower(weights: Weights, blocks: str, widest: str, width: int, head: int) -> dict[str, Any]:
    """Derive a transformer's config from the names and shapes of its blocks."""
    if width % head:
        raise ValueError(
            f"its width of {width} is not a multiple of the attention head width {head}"
        )
    numbers = {name[len(blocks) :].split(".")[0] for name in weights if name.startswith(blocks)}
    return {
        "hidden_size": width,
        "intermediate_size": _shape(weights, f"{blocks}0{widest}.weight", 2)[0],
        "num_hidden_layers": len(numbers),
        "num_attention_heads": width // head,
    }


def _image_size(positions: int, patch: int) -> int:
    """Return the image side for a number of positions: the patches plus one class token."""
    side = math.isqrt(positions - 1) if positions > 1 else 0
    if side * side != positions - 1 or not side:
        raise ValueError(f"its {positions} image positions are not a square number plus 1")
    return side * patch


def _shape(weights: Weights, name: str, dimensions: int) -> list[int]:
    if name not in weights:
        raise ValueError(f"it lacks {name}")
    shape = list(weights[name].shape)
    if len(shape) != dimensions:
        raise ValueError(f"its {name} of shape {shape} should have {dimensions} dimensions")
    return shape


def _rename(name: str, patterns: Mapping[str, str]) -> str:
    for pattern, replacement in patterns.items():
        name = re.sub(pattern, replacement, name)
    return name


def _itself(value: Tensor) -> Tensor:
    return value
