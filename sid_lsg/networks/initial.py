"""Initialise the trained networks from the teacher or from another network."""

from typing import Any

import torch
from torch import nn

from sid_lsg.files.loading import explained, read_json
from sid_lsg.files.sources import SCHEDULER_CONFIG, locate, located
from sid_lsg.files.weights import first_difference
from sid_lsg.messages.errors import UsageError
from sid_lsg.networks.buffers import copied
from sid_lsg.networks.lora import adapt
from sid_lsg.options.lora import LoRA
from sid_lsg.teachers.assembled import load_part
from sid_lsg.teachers.base import Teacher
from sid_lsg.teachers.precision import linear_layers

# Fields of a network that may differ from the teacher's: its size, and how it is trained.
_FREE = ("sample_size", "dropout", "upcast_attention")


def start(
    teacher: Teacher, name: str, source: str | None, adapters: LoRA | None, seed: int
) -> nn.Module:
    """Make a trainable network.

    Args:
        teacher: The teacher. Its linear and convolution weights may be in bfloat16 if all networks
            have adapters; the weights of `source` are then loaded so too.
        name: The network's name in the options.
        source: Folder or Hub id of the initial weights; by default the teacher's weights.
        adapters: LoRA adapters to train. They share the teacher's weights if `source` is None. By
            default all weights are trained, in a copy.
        seed: The run's seed, from which each network's adapters get a different seed.

    Raises:
        UsageError: If `source` does not fit the teacher, or the network cannot have the adapters.
    """
    dtype = next(linear_layers(teacher.network)).weight.dtype
    network = teacher.network
    if source:
        network = load_network(source, teacher, f"model.init.{name}", dtype)
    if adapters:
        network_seed = 2 * seed + (name == "generator")
        return adapt(network, adapters, network_seed, f"model.lora.{name}")
    return (network if source else copied(network)).requires_grad_(True)


def load_network(
    source: str, teacher: Teacher, option: str, dtype: torch.dtype | None = torch.float32
) -> nn.Module:
    """Load a network of the teacher's architecture, from safetensors only.

    Args:
        source: Folder or Hub id of a model, for example an exported one, or the folder of a single
            network.
        teacher: The teacher that the network must fit.
        option: The option that named the network, for messages.
        dtype: Dtype of linear and convolution weights; all others are float32. None leaves the
            weights in their files.

    Raises:
        UsageError: If the network is missing, or its shapes or prediction type differ.
    """
    path, subfolder = _locate(source, teacher.network_name, option)
    own: Any = teacher.network
    remedy = (
        "Give a folder with its config.json and safetensors weights, or a Hub id that this machine "
        "can reach."
    )
    with explained(f"--{option}: could not load the network of {source!r}", remedy):
        network: Any = load_part(type(own), path, subfolder, dtype=dtype)
    _check_fit(network, teacher, source, option)
    if subfolder:
        _check_prediction(teacher, source, option)
    if "sample_size" in own.config:  # sample at the teacher's resolution
        network.register_to_config(sample_size=own.config.sample_size)
    if dtype is None:
        return network
    # Convolutions are fastest in channels-last memory format.
    return network.to(memory_format=torch.channels_last).eval()


def _locate(source: str, name: str, option: str) -> tuple[str, str | None]:
    """Return the network's folder or Hub id, and its subfolder."""
    remedy = f"Give a diffusers folder with a {name}/, or the folder of a network."
    found = located(source, option, remedy)
    if found.kind == "hub":
        return source, name
    folder = found.path
    if (folder / name).is_dir():
        return str(folder), name
    if (folder / "config.json").is_file():
        return str(folder), None
    inside = [path.parent for path in sorted(folder.glob(f"*/{name}"))]
    hint = f"Give {str(inside[0])!r}" if inside else "Give a diffusers folder, or that of a network"
    raise UsageError(f"--{option}: {str(folder)!r} holds no {name}/ and is not a network. {hint}.")


def _check_fit(network: nn.Module, teacher: Teacher, source: str, option: str) -> None:
    different = first_difference(network.state_dict(), teacher.network.state_dict())
    if different:
        raise UsageError(
            f"--{option}: {different.between(repr(source), 'the teacher')}. Give a network that "
            "was trained from this teacher or a similar one."
        )
    found, own = (_fields(one) for one in (network, teacher.network))
    for name in sorted(found.keys() | own.keys()):
        if found.get(name) != own.get(name):
            raise UsageError(
                f"--{option}: the config of {source!r} has {name} {found.get(name)!r}, and the "
                f"teacher's {own.get(name)!r}. Give a network that was trained from this teacher "
                "or a similar one."
            )


def _fields(network: Any) -> dict[str, Any]:
    """Return the configuration's fields that decide what a network computes from its weights."""
    fields = {name: value for name, value in network.config.items() if name not in _FREE}
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in fields.items()
        if not name.startswith("_")
    }


def _check_prediction(teacher: Teacher, source: str, option: str) -> None:
    """Compare the prediction types, which the weights' shapes do not show."""
    try:
        config = read_json(locate(source), SCHEDULER_CONFIG)
    except (OSError, ValueError):
        config = None
    if config is None:  # a network without a scheduler
        return
    own, found = teacher.schedule.prediction_type, teacher.predicted_by(config)
    if found != own:
        raise UsageError(
            f"--{option}: the network of {source!r} predicts {found!r}, and the teacher's {own!r}. "
            "Give a network that was trained from this teacher or a similar one."
        )
