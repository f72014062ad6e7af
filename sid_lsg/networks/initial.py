"""How the trained networks start: as the teacher, or as a network of its kind from a folder."""

import copy
from typing import Any

import torch
from diffusers import DDPMScheduler
from torch import nn

from sid_lsg.files.loading import explained
from sid_lsg.files.sources import located
from sid_lsg.files.weights import first_difference
from sid_lsg.messages.errors import UsageError
from sid_lsg.networks.lora import adapt
from sid_lsg.options.lora import LoRA
from sid_lsg.teachers.base import Teacher

_SUBFOLDER = "unet"


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
        source: A folder or Hub id with a `unet/`, for example an exported one; or a folder that is
            a UNet itself.
        teacher: What it has to fit.
        option: The option that named it, for messages.

    Raises:
        UsageError: If it is not there, or of another shape or prediction type.
    """
    path, subfolder = _locate(source, option)
    own: Any = teacher.network
    options = {"torch_dtype": torch.float32, "use_safetensors": True, "low_cpu_mem_usage": False}
    remedy = (
        "Give a folder with its config.json and safetensors weights, or a Hub id that this machine "
        "can reach."
    )
    with explained(f"--{option}: could not load the UNet of {source!r}", remedy):
        network, report = type(own).from_pretrained(
            path, subfolder=subfolder, output_loading_info=True, **options
        )
        if missing := sorted(report["missing_keys"]):
            raise ValueError(f"its weights lack {missing[0]}")
    _check_fit(network, teacher, source, option)
    if subfolder:
        _check_prediction(path, teacher, source, option)
    # As the teacher's: samples are of this size, convolutions are fastest with the channels last.
    network.register_to_config(sample_size=own.config.sample_size)
    return network.to(memory_format=torch.channels_last).eval()


def _locate(source: str, option: str) -> tuple[str, str | None]:
    """Find the UNet: the folder or Hub id, and the subfolder."""
    remedy = "Give a diffusers folder with a unet/, or a UNet's own folder."
    found = located(source, option, remedy)
    if found.kind == "hub":
        return source, _SUBFOLDER
    folder = found.path
    if (folder / _SUBFOLDER).is_dir():
        return str(folder), _SUBFOLDER
    if (folder / "config.json").is_file():
        return str(folder), None
    inside = [path.parent for path in sorted(folder.glob(f"*/{_SUBFOLDER}"))]
    hint = f"Give {str(inside[0])!r}" if inside else "Give a diffusers folder, or a UNet's own"
    raise UsageError(f"--{option}: {str(folder)!r} holds no unet/ and is not a UNet. {hint}.")


def _check_fit(network: nn.Module, teacher: Teacher, source: str, option: str) -> None:
    different = first_difference(network.state_dict(), teacher.network.state_dict())
    if different:
        raise UsageError(
            f"--{option}: {different.between(repr(source), 'the teacher')}. Give a network that "
            "was made from this teacher, or from one like it."
        )


def _check_prediction(path: str, teacher: Teacher, source: str, option: str) -> None:
    """Compare what the networks predict, which their shapes do not show."""
    try:
        config = DDPMScheduler.load_config(path, subfolder="scheduler")
    except (OSError, ValueError):  # a UNet alone
        return
    own, found = teacher.schedule.prediction_type, config.get("prediction_type", "epsilon")
    if found != own:
        raise UsageError(
            f"--{option}: the UNet of {source!r} predicts {found!r}, and the teacher's {own!r}. "
            "Give a network that was made from this teacher, or from one like it."
        )
