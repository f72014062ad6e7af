"""LoRA: train small adapters of a network's frozen weights (Hu et al., arXiv 2106.09685).

An adapter of rank r adds (alpha / r) B A to a layer's weight. Networks with adapters share one
base (`networks.adapted`), and their parameters are the adapters: they alone are trained, averaged
and saved.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sid_lsg.files.replacing import replacing
from sid_lsg.files.weights import weights_hash
from sid_lsg.messages.errors import UsageError
from sid_lsg.networks.adapted import Adapted, adapters, shared_base, without_changes
from sid_lsg.networks.buffers import copied
from sid_lsg.options.lora import LoRA, check_options
from sid_lsg.teachers.precision import backbone

LORA_FOLDER = "lora"  # in an exported folder
LORA_FILE = "pytorch_lora_weights.safetensors"  # the name that diffusers looks for

_PEFT_FILE, _PEFT_PREFIX = "adapter_model.safetensors", "base_model.model"  # the names in peft
_PEFT_CONFIG = "adapter_config.json"
_HASHED = 4096  # numbers per weight that enter the fingerprint, at most


def is_adapter(name: str) -> bool:
    """Return whether a weight's name is that of an adapter."""
    return ".lora_" in name


# ---------------------------------------------------------------------- adding adapters


def adapt(network: nn.Module, options: LoRA, seed: int, option: str = "lora") -> Adapted:
    """Return a network that is a diffusers network with adapters.

    A is random and B is zero, so it initially computes the same. The global random state is not
    changed.

    Args:
        network: The base, which is frozen in place. Several sets of adapters may share it.
        options: The adapters.
        seed: Seed of A.
        option: The option to name in an error.

    Raises:
        UsageError: If the network has no such layers, or they cannot have adapters.
    """
    check_options(option, options)
    layers = dict(network.named_modules())
    chosen: list[str] = []
    for target in options.targets:
        found = [name for name in layers if f".{name}".endswith(f".{target}")]
        if not found:
            others = [*layers]
            raise UsageError(
                f"--{option}.targets: no layer's name ends with {target!r}. Give suffixes of names "
                f"such as {next((n for n in others if n.endswith('to_q')), others[-1])!r}."
            )
        for name in found:
            _check_layer(name, layers[name], option)
        chosen += found
    return Adapted(network, [name for name in layers if name in {*chosen}], options, seed)


def _check_layer(name: str, layer: nn.Module, option: str) -> None:
    """Reject a layer that cannot have adapters."""
    grouped = isinstance(layer, nn.Conv2d) and layer.groups > 1
    if grouped or not isinstance(layer, nn.Linear | nn.Conv2d):
        kind = f"{'grouped ' if grouped else ''}{type(layer).__name__}"
        raise UsageError(
            f"--{option}.targets: {name!r} is a {kind}, and only linear and convolution layers "
            "without groups can have adapters. Give suffixes of such layers' names."
        )


def copy_trainable(network: nn.Module) -> nn.Module:
    """Copy a network with `requires_grad` off; the copy shares the base under adapters, if any."""
    if isinstance(network, Adapted):
        return network.on_base(network.base).requires_grad_(False)
    return copied(network).requires_grad_(False)


# ---------------------------------------------------------------------- merging and saving


@torch.no_grad()
def merged_weight(network: nn.Module, name: str, value: Tensor) -> Tensor:
    """Return a weight of a network with its adapters merged, on the CPU in float32.

    Args:
        network: The network.
        name: The weight's name in the base.
        value: The base's weight.
    """
    layer, _, kind = name.rpartition(".")
    adapter = network.by_layer.get(layer) if isinstance(network, Adapted) else None
    whole = value.detach().cpu().float()
    return whole if adapter is None or kind != "weight" else whole + adapter.change().cpu()


class Merged(Mapping[str, Tensor]):
    """The weights of a network with its adapters merged, each made when it is asked for."""

    def __init__(self, network: nn.Module) -> None:
        self._network, self._base = network, backbone(network).state_dict()

    def __getitem__(self, name: str) -> Tensor:
        """Return a weight on the CPU, in float32; other tensors keep their dtype."""
        value: Tensor = self._base[name]
        return merged_weight(self._network, name, value) if value.is_floating_point() else value

    def __iter__(self) -> Iterator[str]:
        return iter(self._base)

    def __len__(self) -> int:
        return len(self._base)


@torch.no_grad()
def merge(network: nn.Module) -> nn.Module:
    """Merge a network's adapters into its base's weights in place, and return the base.

    The base then has no adapters, and no other network may share it. A network without adapters is
    returned unchanged.
    """
    if isinstance(network, Adapted):
        for name, adapter in network.by_layer.items():
            weight: Any = network.base.get_submodule(name).weight
            weight += adapter.change()
        without_changes(network.base)
    return backbone(network)


def save_lora(network: nn.Module, name: str, folder: str | Path) -> None:
    """Save a network's adapters for a diffusers pipeline's `load_lora_weights(folder)`.

    B is saved multiplied by alpha / rank: without a stored alpha, loaders use a scale of 1.
    PixArt's pipelines have no such method: its adapters are saved for `PeftModel.from_pretrained`.

    Args:
        network: The network.
        name: Its name in the pipeline, `Teacher.network_name`.
        folder: Where to write.
    """
    loads = hasattr(backbone(network), "load_lora_adapter")
    prefix, file = (name, LORA_FILE) if loads else (_PEFT_PREFIX, _PEFT_FILE)
    weights = {}
    for key, value in adapters(network).items():
        factor = scale(network) if ".lora_B." in key else 1.0
        plain = (value.detach().float() * factor).cpu().contiguous()
        weights[f"{prefix}.{key.replace('.default.', '.')}"] = plain
    with replacing(Path(folder) / file) as temporary:
        save_file(weights, temporary, metadata={"format": "pt"})
    if not loads and isinstance(network, Adapted):
        rank = len(next(iter(network.by_layer.values())).factors[0])
        config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "inference_mode": True}
        own = json.dumps(config | {"target_modules": [*network.by_layer]}, indent=2)
        (Path(folder) / _PEFT_CONFIG).write_text(own + "\n", encoding="utf-8")


# ---------------------------------------------------------------------- resuming


def scale(network: nn.Module) -> float:
    """Return alpha / rank of a network's adapters; 1 if it has none."""
    return next(iter(network.by_layer.values())).scale if isinstance(network, Adapted) else 1.0


def base_hash(network: nn.Module) -> str | None:
    """Return a fingerprint of the weights under a network's adapters; None if it has none.

    It is computed once, before the base is sharded. It hashes some numbers of each weight, rounded
    to bfloat16, since the base may be stored so, under peft's names.
    """
    if not isinstance(network, Adapted):
        return None
    known, layers = shared_base(network.base).hashes, tuple(network.by_layer)
    if layers not in known:
        some = {}
        for name, p in network.base.named_parameters():
            layer, _, kind = name.rpartition(".")
            own = f"{layer}.base_layer.{kind}" if layer in network.by_layer else name
            flat = p.detach().flatten()
            some[own] = flat[:: flat.numel() // _HASHED + 1].bfloat16()
        known[layers] = weights_hash(some)
    return known[layers]


def adapters_record(module: nn.Module) -> dict[str, Any]:
    """Return the adapters' scales and the fingerprints of their bases, for a checkpoint."""
    networks = dict(module.named_children())
    return {
        "lora_scales": {name: scale(network) for name, network in networks.items()},
        "lora_bases": {name: base_hash(network) for name, network in networks.items()},
    }


def check_adapters_record(module: nn.Module, found: Mapping[str, Any]) -> None:
    """Reject a checkpoint whose adapters have another scale or base than the module's.

    Args:
        module: The module that resumes; its networks are named as in the options.
        found: The checkpoint. What an old one does not record is not checked.

    Raises:
        UsageError: For the first difference.
    """
    own = adapters_record(module)
    for name, now in own["lora_scales"].items():
        if now != (before := found.get("lora_scales", {}).get(name, now)):
            raise UsageError(
                f"--model.lora.{name}.alpha is {now:g} times the rank, but the checkpoint has "
                f"{before:g} times. Give the checkpoint's alpha, or another checkpoint."
            )
    for name, now in own["lora_bases"].items():
        if now != found.get("lora_bases", {}).get(name, now):
            option = f"model.init.{name.replace('ema', 'generator')}"
            raise UsageError(
                f"--ckpt_path: the LoRA adapters of {name!r} were trained on other weights than "
                f"this run's. Give the --{option} and --model.teacher of the checkpoint's run, or "
                "another checkpoint."
            )
