"""LoRA: train small adapters of a network's frozen weights.

An adapter of rank r adds (alpha / r) B A to a layer's weight. Networks with the same base share its
tensors, so three of them take little more memory than one. `trainable` lists the weights of a
network that are trained, averaged and saved: its adapters, or all weights if it has none.
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
from sid_lsg.networks.buffers import copied
from sid_lsg.options.lora import LoRA, check_options

LORA_FOLDER = "lora"  # in an exported folder
LORA_FILE = "pytorch_lora_weights.safetensors"  # the name that diffusers looks for

_PEFT_FILE, _PEFT_PREFIX = "adapter_model.safetensors", "base_model.model"  # the names in peft
_ADAPTER = "default"  # peft's name of a network's only adapter
_HASHED = 4096  # numbers per weight that enter the fingerprint, at most


# ---------------------------------------------------------------------- adapters and base


def is_adapter(name: str) -> bool:
    """Return whether a weight's name is that of an adapter."""
    return ".lora_" in name


def adapters(network: nn.Module) -> dict[str, nn.Parameter]:
    """Return a network's adapter weights by name; empty if it has no adapters."""
    return {name: p for name, p in network.named_parameters() if is_adapter(name)}


def trainable(network: nn.Module) -> list[nn.Parameter]:
    """Return the weights that are trained and averaged, whatever their `requires_grad`.

    The adapters of a network that has some, else all weights.
    """
    named = dict(network.named_parameters())
    return [p for name, p in named.items() if is_adapter(name)] or [*named.values()]


def base(network: nn.Module) -> dict[str, nn.Parameter]:
    """Return the frozen weights under a network's adapters; empty if it has no adapters."""
    named = dict(network.named_parameters())
    own = adapters(network)
    return {name: p for name, p in named.items() if name not in own} if own else {}


# ---------------------------------------------------------------------- adding adapters


def adapt(network: nn.Module, options: LoRA, seed: int, option: str = "lora") -> nn.Module:
    """Copy a diffusers network and add adapters; the copy shares the network's weights.

    A is random and B is zero, so the copy initially computes the same as the network. The global
    random state is not changed.

    Args:
        network: The base, which is frozen in place.
        options: The adapters.
        seed: Seed of A.
        option: The option to name in an error.

    Raises:
        UsageError: If peft is not installed, or the network has no such layers.
    """
    check_options(option, options)
    from peft import LoraConfig

    layers = [name for name, _ in network.named_modules()]
    for target in options.targets:
        if not any(f".{name}".endswith(f".{target}") for name in layers):
            raise UsageError(
                f"--{option}.targets: no layer's name ends with {target!r}. Give suffixes of names "
                f"such as {next((n for n in layers if n.endswith('to_q')), layers[-1])!r}."
            )
    network.requires_grad_(False)
    adapted: Any = copied(network, network.parameters())
    factors: dict[str, Any] = {"r": options.rank, "lora_alpha": options.alpha or options.rank}
    config = LoraConfig(**factors, target_modules=list(options.targets))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        try:
            _add(adapted, config)
        except ValueError as error:
            raise UsageError(f"--{option}.targets: {error}") from error
    frozen: nn.Module = adapted.eval()
    return frozen


def _add(network: Any, config: Any) -> None:
    """Add adapters to a network, also to PixArt's, which has no methods of diffusers for them."""
    if hasattr(network, "add_adapter"):
        network.add_adapter(config, _ADAPTER)
    else:
        from peft import inject_adapter_in_model

        inject_adapter_in_model(config, network, _ADAPTER)


def copy_trainable(network: nn.Module) -> nn.Module:
    """Copy a network with `requires_grad` off; the copy shares the base under adapters, if any."""
    return copied(network, base(network).values()).requires_grad_(False)


# ---------------------------------------------------------------------- merging and saving


@torch.no_grad()
def merged(network: nn.Module) -> nn.Module:
    """Return a copy with the adapters merged into its weights, on the CPU in float32.

    Its weights have the base's names. A network without adapters is returned unchanged.
    """
    if not adapters(network):
        return network
    own = {
        id(p): nn.Parameter(p.detach().to("cpu", torch.float32, copy=True), False)
        for p in network.parameters()
    }
    alone: Any = copy.deepcopy(network, own)
    _merge(alone)
    return alone.cpu().eval()


def _merge(network: Any) -> None:
    """Add the adapters to the weights of any network, and remove them."""
    from diffusers.utils import recurse_remove_peft_layers
    from peft.tuners.tuners_utils import BaseTunerLayer

    for module in network.modules():
        if isinstance(module, BaseTunerLayer):
            module.merge()
    recurse_remove_peft_layers(network)
    del network.peft_config


def save_lora(network: nn.Module, name: str, folder: str | Path) -> None:
    """Save a network's adapters for a diffusers pipeline's `load_lora_weights(folder)`.

    B is saved multiplied by alpha / rank: without a stored alpha, loaders use a scale of 1.
    PixArt's pipelines have no such method: its adapters are saved for `PeftModel.from_pretrained`.

    Args:
        network: The network.
        name: Its name in the pipeline, `Teacher.network_name`.
        folder: Where to write.
    """
    loads = hasattr(network, "load_lora_adapter")
    prefix, file = (name, LORA_FILE) if loads else (_PEFT_PREFIX, _PEFT_FILE)
    weights = {}
    for key, value in adapters(network).items():
        factor = scale(network) if ".lora_B." in key else 1.0
        plain = (value.detach().float() * factor).cpu().contiguous()
        weights[f"{prefix}.{key.replace(f'.{_ADAPTER}.', '.')}"] = plain
    with replacing(Path(folder) / file) as temporary:
        save_file(weights, temporary, metadata={"format": "pt"})
    if not loads:
        own: Any = copy.copy(network.peft_config[_ADAPTER])  # type: ignore[index]
        own.lora_alpha, own.inference_mode = own.r, True
        own.save_pretrained(str(folder))


# ---------------------------------------------------------------------- resuming


def scale(network: nn.Module) -> float:
    """Return alpha / rank of a network's adapters; 1 if it has none."""
    config: Any = getattr(network, "peft_config", {}).get(_ADAPTER)
    return config.lora_alpha / config.r if config else 1.0


def base_hash(network: nn.Module) -> str | None:
    """Return a fingerprint of the weights under a network's adapters; None if it has none.

    It hashes some numbers of each weight, rounded to bfloat16, since the base may be stored so.
    """
    some = {}
    for name, p in base(network).items():
        flat = p.detach().flatten()
        some[name] = flat[:: flat.numel() // _HASHED + 1].bfloat16()
    return weights_hash(some) if some else None


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
