"""LoRA: small adapters are trained beside a network's weights, which stay as they are.

An adapter of rank r adds (alpha / r) B A to a layer's weight. Networks on one base share its
tensors, so that three of them take little more memory than one. What is trained, averaged and saved
of a network is `trainable`: its adapters, or all its weights where it has none.
"""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from sid_lsg.files.replacing import replacing
from sid_lsg.files.weights import weights_hash
from sid_lsg.messages.errors import UsageError
from sid_lsg.options.lora import LoRA, check_options

LORA_FOLDER = "lora"  # in an exported folder
LORA_FILE = "pytorch_lora_weights.safetensors"  # the name that diffusers looks for

_ADAPTER = "default"  # peft's name for a network's only one
_HASHED = 4096  # so many numbers of a weight tell it from another model's


# ---------------------------------------------------------------------- what is trained


def is_adapter(name: str) -> bool:
    """Tell whether a weight's name is that of an adapter."""
    return ".lora_" in name


def adapters(network: nn.Module) -> dict[str, nn.Parameter]:
    """Return a network's adapters by their names in its state; none where all of it is trained."""
    return {name: p for name, p in network.named_parameters() if is_adapter(name)}


def trainable(network: nn.Module) -> list[nn.Parameter]:
    """Return what is trained or averaged of a network, whether it is being trained or not."""
    named = dict(network.named_parameters())
    return [p for name, p in named.items() if is_adapter(name)] or [*named.values()]


def base(network: nn.Module) -> dict[str, nn.Parameter]:
    """Return the weights under a network's adapters; none where all of it is trained."""
    named = dict(network.named_parameters())
    own = adapters(network)
    return {name: p for name, p in named.items() if name not in own} if own else {}


# ---------------------------------------------------------------------- making such networks


def adapt(network: nn.Module, options: LoRA, seed: int, option: str = "lora") -> nn.Module:
    """Copy a diffusers network and add adapters; the copy shares all the network's own weights.

    Until it is trained it computes what the network does: A is random, B zero. The global random
    state is as before.

    Args:
        network: The base. It is frozen.
        options: The adapters.
        seed: Seed of A.
        option: The option that asked for them, for messages.

    Raises:
        UsageError: If peft is not installed, or the network has no such layers.
    """
    check_options(option, options)
    from peft import LoraConfig

    layers = [name for name, _ in network.named_modules()]
    for target in options.targets:
        if not any(f".{name}".endswith(f".{target}") for name in layers):
            raise UsageError(
                f"--{option}.targets: no layer's name ends with {target!r}. Give the ends of names "
                f"such as {next((n for n in layers if n.endswith('to_q')), layers[-1])!r}."
            )
    network.requires_grad_(False)
    copied = copy.deepcopy(network, {id(t): t for t in (*network.parameters(), *network.buffers())})
    factors: dict[str, Any] = {"r": options.rank, "lora_alpha": options.alpha or options.rank}
    config = LoraConfig(**factors, target_modules=list(options.targets))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        try:
            copied.add_adapter(config, _ADAPTER)  # type: ignore[operator]
        except ValueError as error:
            raise UsageError(f"--{option}.targets: {error}") from error
    return copied.eval()


def copy_trainable(network: nn.Module) -> nn.Module:
    """Copy a network without gradients; the copy shares the base under its adapters, if any."""
    copied = copy.deepcopy(network, {id(p): p for p in base(network).values()})
    return copied.requires_grad_(False)


# ---------------------------------------------------------------------- without adapters


@torch.no_grad()
def merged(network: nn.Module) -> nn.Module:
    """Add adapters to the weights they are for: a plain network on the CPU, in float32.

    Its weights have the base's names. A network without adapters is returned as it is.
    """
    if not adapters(network):
        return network
    own = {
        id(p): nn.Parameter(p.detach().to("cpu", torch.float32, copy=True), False)
        for p in network.parameters()
    }
    copied: Any = copy.deepcopy(network, own)
    copied.fuse_lora()
    copied.unload_lora()
    return copied.cpu().eval()


def save_lora(network: nn.Module, folder: str | Path) -> None:
    """Write a network's adapters for `StableDiffusionPipeline.load_lora_weights(folder)`.

    B is written with alpha / rank in it, so that readers need not know alpha: without it they take
    a scale of 1.
    """
    weights = {}
    for name, value in adapters(network).items():
        factor = scale(network) if ".lora_B." in name else 1.0
        plain = (value.detach().float() * factor).cpu().contiguous()
        weights[f"unet.{name.replace(f'.{_ADAPTER}.', '.')}"] = plain
    with replacing(Path(folder) / LORA_FILE) as temporary:
        save_file(weights, temporary, metadata={"format": "pt"})


# ---------------------------------------------------------------------- a continued run


def scale(network: nn.Module) -> float:
    """Return alpha / rank of a network's adapters; 1 without any."""
    config: Any = getattr(network, "peft_config", {}).get(_ADAPTER)
    return config.lora_alpha / config.r if config else 1.0


def base_hash(network: nn.Module) -> str | None:
    """Return a fingerprint of the weights under a network's adapters; None without any.

    Of some numbers of each weight, rounded to bfloat16, in which they may be stored.
    """
    some = {}
    for name, p in base(network).items():
        flat = p.detach().flatten()
        some[name] = flat[:: flat.numel() // _HASHED + 1].bfloat16()
    return weights_hash(some) if some else None


def adapters_record(module: nn.Module) -> dict[str, Any]:
    """Return what the adapters' weights do not show, for a checkpoint: scales and bases."""
    networks = dict(module.named_children())
    return {
        "lora_scales": {name: scale(network) for name, network in networks.items()},
        "lora_bases": {name: base_hash(network) for name, network in networks.items()},
    }


def check_adapters_record(module: nn.Module, found: Mapping[str, Any]) -> None:
    """Refuse to continue with adapters that count for more or less, or are on other weights.

    Args:
        module: What is to continue; its networks have their names in the options.
        found: The checkpoint. An old one does not say all.

    Raises:
        UsageError: For the first that differs.
    """
    own = adapters_record(module)
    for name, now in own["lora_scales"].items():
        if now != (before := found.get("lora_scales", {}).get(name, now)):
            raise UsageError(
                f"--model.lora_{name}.alpha is {now:g} times the rank, and in the checkpoint "
                f"{before:g} times. Give the alpha that it was made with, or another checkpoint."
            )
    for name, now in own["lora_bases"].items():
        if now != found.get("lora_bases", {}).get(name, now):
            option = f"model.{name.replace('ema', 'generator')}_init"
            raise UsageError(
                f"--ckpt_path: the LoRA adapters of {name!r} in the file are for other weights "
                f"than these. Give the --{option} and --model.teacher that it was made with, or "
                "another checkpoint."
            )
