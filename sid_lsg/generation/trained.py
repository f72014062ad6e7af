"""Load the generator of a checkpoint, for sampling and export."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import nn

from sid_lsg.checkpoints.opening import OpenCheckpoint
from sid_lsg.checkpoints.shards import joined
from sid_lsg.export.snapshots import post_hoc_ema
from sid_lsg.files.weights import first_difference, first_not_finite
from sid_lsg.messages.errors import UsageError
from sid_lsg.method.choices import Noise
from sid_lsg.method.guidance import NO_GUIDANCE
from sid_lsg.networks.adapted import adapters
from sid_lsg.networks.initial import load_network
from sid_lsg.networks.lora import adapt, merge
from sid_lsg.networks.memory import set_text
from sid_lsg.options.flow import Flow
from sid_lsg.options.lora import LoRA
from sid_lsg.options.method import Method
from sid_lsg.options.text import Text
from sid_lsg.teachers import families
from sid_lsg.teachers.base import Teacher

_EMA = "ema."  # prefix of the generator's EMA in a checkpoint


class Trained(NamedTuple):
    """A generator with its sampling settings and its training's record.

    Attributes:
        teacher: The teacher's parts, with the generator's EMA in float32 as `network`.
        t_init: The generator's first timestep.
        num_steps: K of the training.
        record: The checkpoint's record: `schema`, `versions` and `config`.
        adapted: The LoRA adapters that are merged into `network`; None if it was trained without.
        noise: The noise of the generator's later steps.
    """

    teacher: Teacher
    t_init: int
    num_steps: int
    record: dict[str, Any]
    adapted: nn.Module | None = None
    noise: Noise = "fresh"


def load_trained(
    checkpoint: OpenCheckpoint,
    teacher: str | None = None,
    resolution: int | None = None,
    option: str = "ckpt_path",
    teacher_option: str = "teacher",
    ema_width: float | None = None,
) -> Trained:
    """Load the generator's EMA from a checkpoint, with the other parts of its teacher.

    Args:
        checkpoint: The checkpoint.
        teacher: The teacher's folder or Hub id; by default the training's.
        resolution: Pixels per side of an image; by default the training's.
        option: The option that named the checkpoint, for messages.
        teacher_option: The option that names the teacher, for messages.
        ema_width: Relative width of an EMA to make from the run's snapshots, in place of its own.

    Raises:
        UsageError: If the checkpoint has no config, its teacher is missing or another one, or there
            are no snapshots.
    """
    record, path = checkpoint.record, str(checkpoint.path)
    options = checkpoint.config.get("model")
    if not options:
        raise UsageError(
            f"--{option}: {path!r} holds no config of its training, because the command line did "
            "not write it. Give a checkpoint that `fit` wrote."
        )
    if teacher:
        where: Mapping[str, Any] = {"model": teacher}
    else:
        where = {"model": options["teacher"]} | options.get("loading", {})
    if resolution is None:
        resolution = options.get("resolution")
    loaded = families.load(**where, resolution=resolution, option=teacher_option)
    start = len(_EMA)
    state = checkpoint.content["state_dict"]
    ema = joined({k[start:]: v for k, v in state.items() if k.startswith(_EMA)})
    if ema_width is not None:
        seen = checkpoint.iterations * checkpoint.config["data"]["batch_size"]
        ema |= post_hoc_ema(checkpoint.path.absolute().parent.parent, seen, ema_width)
    if damaged := first_not_finite(ema):
        raise UsageError(
            f"--{option}: the weight {damaged!r} of the generator in {path!r} is not finite. Give "
            "an earlier checkpoint."
        )
    network: Any = loaded.network
    lora = options.get("lora", {}).get("generator")
    if lora:
        if source := options.get("init", {}).get("generator"):
            network = load_network(source, loaded, option)
        network = adapt(network, LoRA(**lora), seed=0, option=option)
    if different := first_difference(ema, adapters(network) or network.state_dict()):
        raise UsageError(
            f"--{option}: {different.between(repr(path), 'the teacher')}: it was trained with "
            "another teacher. Give that one with `export --teacher`."
        )
    network.load_state_dict(ema)
    loaded.network = merge(network)
    adapted = network if lora else None
    Flow.of(options).set_times(loaded.schedule)
    text = options.get("text") or {}
    length, null = text.get("max_sequence_length"), text.get("null")
    set_text(Text(max_sequence_length=length, null=null), loaded)
    method = Method.of(options).of_teacher(loaded.schedule, sampling=True)
    recipe = method.recipe(NO_GUIDANCE)
    return Trained(loaded, recipe.t_init, options["num_steps"], record, adapted, recipe.noise)
