"""The generator in a checkpoint of a training, ready to be sampled or exported."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import nn

from sid_lsg.checkpoints.opening import OpenCheckpoint
from sid_lsg.checkpoints.shards import joined
from sid_lsg.files.weights import first_difference
from sid_lsg.messages.errors import UsageError
from sid_lsg.networks.initial import load_network
from sid_lsg.networks.lora import adapt, adapters, merged
from sid_lsg.options.lora import LoRA
from sid_lsg.teachers import families
from sid_lsg.teachers.base import Teacher

AVERAGE = "ema."  # the generator's average in a checkpoint, which is what is evaluated


class Trained(NamedTuple):
    """A generator and how it is sampled.

    Attributes:
        teacher: The teacher's parts, with the averaged generator in float32 as `network`.
        t_init: The generator's timestep.
        num_steps: Evaluations per image, as in the training.
        record: What the checkpoint says of its training: `schema`, `versions` and `config`.
        adapted: The same generator with its LoRA adapters apart; None if it was trained whole.
    """

    teacher: Teacher
    t_init: int
    num_steps: int
    record: dict[str, Any]
    adapted: nn.Module | None = None


def load_trained(
    checkpoint: OpenCheckpoint,
    teacher: str | None = None,
    resolution: int | None = None,
    option: str = "ckpt_path",
    teacher_option: str = "teacher",
) -> Trained:
    """Load the averaged generator of a checkpoint, with its teacher's VAE and text encoder.

    Args:
        checkpoint: The checkpoint.
        teacher: Where the teacher lies; by default where it lay in the training.
        resolution: Pixels of an image's side; by default the training's.
        option: The option that named the checkpoint, for messages.
        teacher_option: The one that names its teacher.

    Raises:
        UsageError: If it does not say how it was trained, or its teacher is not found or another.
    """
    record, path = checkpoint.record, str(checkpoint.path)
    options = checkpoint.config.get("model")
    if not options:
        raise UsageError(
            f"--{option}: {path!r} does not say how it was trained: it was not written by "
            "the command line. Give one that `fit` has written."
        )
    if teacher:
        where: Mapping[str, Any] = {"model": teacher}
    else:
        where = {"model": options["teacher"]} | options.get("loading", {})
    if resolution is None:
        resolution = options.get("resolution")
    loaded = families.load(**where, resolution=resolution, option=teacher_option)
    start = len(AVERAGE)
    state = checkpoint.content["state_dict"]
    average = joined({k[start:]: v for k, v in state.items() if k.startswith(AVERAGE)})
    network: Any = loaded.network
    lora = options.get("lora", {}).get("generator")
    if lora:
        if source := options.get("init", {}).get("generator"):
            network = load_network(source, loaded, option)
        network = adapt(network, LoRA(**lora), seed=0, option=option)
    if different := first_difference(average, adapters(network) or network.state_dict()):
        raise UsageError(
            f"--{option}: {different.between(repr(path), 'the teacher')}: it was made with another "
            "one. Name that with `export --teacher`."
        )
    network.load_state_dict(average, strict=not lora)  # the base is not in the file
    loaded.network = merged(network)
    adapted = network if lora else None
    return Trained(loaded, options["t_init"], options["num_steps"], record, adapted)
