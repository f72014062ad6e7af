"""How the trained networks start: as the teacher, or as a network of its kind from a folder."""

import copy
from typing import Any

import torch
from torch import nn

from sid_lsg.files import loading
from sid_lsg.files.loading import explained
from sid_lsg.files.sources import SCHEDULER_CONFIG, locate, located
from sid_lsg.files.weights import first_difference
from sid_lsg.messages.errors import UsageError
from sid_lsg.networks.lora import adapt
from sid_lsg.options.lora import LoRA
from sid_lsg.teachers.base import Teacher


def start(
    teacher: Teacher, name: str, source: str | None, adapters: LoRA | None, seed: int
) -> nn.Module:
    """Make a network that is to be trained.

    Args:
        teacher: The teacher, whose weights are in float32.
        name: The network's name in the options.
        source: Where its weights lie; by default they are the teacher's.
        adapters: What to train beside them, on the teacher's own tensors if they are the teacher's;
            by default a copy of all weights.
        seed: The run's seed; each network's adapters start from their own part of it.

    Raises:
        UsageError: If `source` is no such network, or cannot have these adapters.
    """
    network = load_network(source, teacher, f"model.init.{name}") if source else teacher.network
    if adapters:
        own = 2 * seed + (name == "generator")
        return adapt(network, adapters, own, f"model.lora.{name}")
    return (network if source else copy.deepcopy(network)).requires_grad_(True)


def load_network(source: str, teacher: Teacher, option: str) -> nn.Module:
    """Load a network of the teacher's kind in float32, from safetensors alone.

    Args:
        source: A model's folder or Hub id, for example an exported one; or the folder of a network
            alone.
        teacher: What it has to fit.
        option: The option that named it, for messages.

    Raises:
        UsageError: If it is not there, or of another shape or prediction type.
    """
    path, subfolder = _locate(source, teacher.network_name, option)
    own: Any = teacher.network
    remedy = (
        "Give a folder with its config.json and safetensors weights, or a Hub id that this machine "
        "can reach."
    )
    with explained(f"--{option}: could not load the network of {source!r}", remedy):
        network = loading.load_network(
            type(own), path, subfolder=subfolder, torch_dtype=torch.float32, low_cpu_mem_usage=False
        )
    _check_fit(network, teacher, source, option)
    if subfolder:
        _check_prediction(teacher, source, option)
    if "sample_size" in own.config:  # samples are of the teacher's size
        network.register_to_config(sample_size=own.config.sample_size)
    # Convolutions are fastest with the channels last.
    return network.to(memory_format=torch.channels_last).eval()


def _locate(source: str, name: str, option: str) -> tuple[str, str | None]:
    """Find the network: the folder or Hub id, and the subfolder."""
    remedy = f"Give a diffusers folder with a {name}/, or a network's own folder."
    found = located(source, option, remedy)
    if found.kind == "hub":
        return source, name
    folder = found.path
    if (folder / name).is_dir():
        return str(folder), name
    if (folder / "config.json").is_file():
        return str(folder), None
    inside = [path.parent for path in sorted(folder.glob(f"*/{name}"))]
    hint = f"Give {str(inside[0])!r}" if inside else "Give a diffusers folder, or a network's own"
    raise UsageError(f"--{option}: {str(folder)!r} holds no {name}/ and is not a network. {hint}.")


def _check_fit(network: nn.Module, teacher: Teacher, source: str, option: str) -> None:
    different = first_difference(network.state_dict(), teacher.network.state_dict())
    if different:
        raise UsageError(
            f"--{option}: {different.between(repr(source), 'the teacher')}. Give a network that "
            "was made from this teacher, or from one like it."
        )


def _check_prediction(teacher: Teacher, source: str, option: str) -> None:
    """Compare what the networks predict, which their shapes do not show."""
    try:
        config = loading.read_json(locate(source), SCHEDULER_CONFIG)
    except (OSError, ValueError):
        config = None
    if config is None:  # a network alone
        return
    own, found = teacher.schedule.prediction_type, teacher.predicted_by(config)
    if found != own:
        raise UsageError(
            f"--{option}: the network of {source!r} predicts {found!r}, and the teacher's {own!r}. "
            "Give a network that was made from this teacher, or from one like it."
        )
