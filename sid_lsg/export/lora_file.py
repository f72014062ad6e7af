"""Save LoRA adapters under the names that other tools read.

kohya's names are `lora_unet_` and the layer's name with underscores; a layer's change is
(alpha / rank) up @ down. Layers that the original code joins (query, key and value) are one layer
there, so their adapters become one of block-diagonal form with three times the rank.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sid_lsg.export.original.layout import Layout, NoPlace
from sid_lsg.export.original.models import Original
from sid_lsg.messages.errors import UsageError
from sid_lsg.networks.adapted import adapters
from sid_lsg.networks.lora import LORA_FILE, scale
from sid_lsg.options.choices import LoRALayout
from sid_lsg.teachers.precision import backbone

PEFT_FILE = "adapter_model.safetensors"  # peft's name


class Adapter(NamedTuple):
    """A layer's adapter: its change is (alpha / rank) up @ down."""

    down: Tensor
    up: Tensor
    alpha: float


def own_base(config: Mapping[str, Any] | None) -> str | None:
    """Return the network under the generator's adapters, if it is not the teacher's.

    Args:
        config: The training's configuration, if known.
    """
    model = (config or {}).get("model") or {}
    if not (model.get("lora") or {}).get("generator"):
        return None
    return (model.get("init") or {}).get("generator")


def fit_teacher(network: nn.Module | None, config: Mapping[str, Any] | None) -> bool:
    """Return whether a network has adapters that make the generator from the teacher.

    Args:
        network: The generator; None if it has no adapters.
        config: The training's configuration, if known.
    """
    return network is not None and bool(adapters(network)) and own_base(config) is None


def by_peft(network: nn.Module) -> bool:
    """Return whether peft loads a network's adapters, since its pipeline does not: PixArt's."""
    return not hasattr(backbone(network), "load_lora_adapter")


def lora_file_name(network: nn.Module, layout: LoRALayout, name: str) -> str:
    """Return the name of a LoRA file.

    Args:
        network: The network.
        layout: The names in it.
        name: The export's name.
    """
    if by_peft(network):
        return PEFT_FILE
    return LORA_FILE if layout == "diffusers" else f"{name}.safetensors"


def adapters_of(network: nn.Module) -> dict[str, Adapter]:
    """Return a network's adapters by their layers, in float32 on the CPU."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, value in adapters(network).items():
        layer, factor = re.fullmatch(r"(.+)\.lora_([AB])\.\w+\.weight", name).groups()  # type: ignore[union-attr]
        found.setdefault(layer, {})[factor] = value.detach().float().cpu()
    return {
        layer: Adapter(pair["A"], pair["B"], scale(network) * pair["A"].shape[0])
        for layer, pair in found.items()
    }


def lora_weights(
    network: Any, model: Original | None, layout: LoRALayout, name: str
) -> dict[str, Tensor]:
    """Return the tensors of a LoRA file.

    Args:
        network: The network with adapters.
        model: How the original code stores the model; None if no tool reads that.
        layout: diffusers: for `load_lora_weights`. kohya: for A1111 and Forge. comfyui: the one of
            the two that ComfyUI reads.
        name: The network's name in the pipeline.

    Raises:
        UsageError: If the family has no such names.
    """
    found = adapters_of(network)
    chosen = layout
    if layout == "comfyui":
        chosen = model.comfyui_lora if model else "diffusers"
    if chosen == "diffusers":
        return _peft(found, name)
    if model and model.lora_names == "diffusers":
        return _kohya(found)
    base: Any = backbone(network)
    shapes = {weight: value.shape for weight, value in base.state_dict().items()}
    try:
        names = model.layout(base.config) if model else Layout(())
        return _kohya(_original(found, names, shapes))
    except NoPlace as error:
        raise UsageError(
            f"--layout {layout}: this family has no names there. Use --layout diffusers."
        ) from error


def _peft(found: Mapping[str, Adapter], name: str) -> dict[str, Tensor]:
    """Name adapters as peft does; without a stored alpha, loaders use a scale of 1."""
    tensors = {}
    for layer, (down, up, alpha) in found.items():
        tensors[f"{name}.{layer}.lora_A.weight"] = down
        tensors[f"{name}.{layer}.lora_B.weight"] = up * (alpha / len(down))
    return tensors


def _kohya(found: Mapping[str, Adapter]) -> dict[str, Tensor]:
    tensors = {}
    for layer, (down, up, alpha) in found.items():
        key = f"lora_unet_{layer.replace('.', '_')}"
        tensors[f"{key}.lora_down.weight"] = down
        tensors[f"{key}.lora_up.weight"] = up
        tensors[f"{key}.alpha"] = torch.tensor(alpha)
    return tensors


def _original(
    found: Mapping[str, Adapter], layout: Layout, shapes: Mapping[str, torch.Size]
) -> dict[str, Adapter]:
    """Rename adapters to the original layers, and join those of joined layers.

    Args:
        found: The adapters by layer.
        layout: The network's layout.
        shapes: The shapes of all weights of the network.
    """
    named = {}
    for original, sources in layout.names(shapes).items():
        layers = [source.removesuffix(".weight") for source in sources]
        if found.keys().isdisjoint(layers):
            continue
        parts = [
            found[layer] if layer in found else _nothing(shapes[source])
            for layer, source in zip(layers, sources, strict=True)
        ]
        joined = _joined(parts) if len(parts) > 1 else parts[0]
        up = layout.change(original, joined.up)
        named[original.removesuffix(".weight")] = joined._replace(up=up)
    return named


def _nothing(shape: torch.Size) -> Adapter:
    """Return an adapter of rank 0, for a layer without one."""
    return Adapter(torch.zeros(0, shape[1]), torch.zeros(shape[0], 0), 0.0)


def _joined(parts: list[Adapter]) -> Adapter:
    """Join the adapters of layers whose outputs are concatenated; alpha / rank stays the same."""
    down, up = torch.cat([one.down for one in parts]), torch.block_diag(*(one.up for one in parts))
    return Adapter(down, up, sum(one.alpha for one in parts))
