"""Load the generator of a checkpoint, for sampling and export."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from sid_lsg.checkpoints.opening import OpenCheckpoint
from sid_lsg.checkpoints.shards import joined
from sid_lsg.distributed.sharding import skeleton
from sid_lsg.export.snapshots import post_hoc_ema
from sid_lsg.files.weights import first_difference, first_not_finite
from sid_lsg.messages.errors import UsageError
from sid_lsg.method.choices import Noise
from sid_lsg.method.guidance import NO_GUIDANCE
from sid_lsg.networks.adapted import adapters
from sid_lsg.networks.initial import load_network
from sid_lsg.networks.lora import Merged, adapt, merge
from sid_lsg.networks.memory import set_text
from sid_lsg.options.flow import Flow
from sid_lsg.options.lora import LoRA
from sid_lsg.options.method import Method
from sid_lsg.options.text import Text
from sid_lsg.teachers import families
from sid_lsg.teachers.base import Teacher
from sid_lsg.teachers.precision import FLOAT32, IN_FILES, backbone

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
        weights: The generator's weights, merged, in float32. `load_trained` may leave them in files
            until each is read; `network` then has only their shapes.
    """

    teacher: Teacher
    t_init: int
    num_steps: int
    record: dict[str, Any]
    adapted: nn.Module | None = None
    noise: Noise = "fresh"
    weights: Mapping[str, Tensor] | None = None


class _Joined(Mapping[str, Tensor]):
    """Weights of a checkpoint, each read and joined when it is asked for."""

    def __init__(self, stored: Mapping[str, Any]) -> None:
        self._stored = stored

    def __getitem__(self, name: str) -> Tensor:
        found: Tensor = joined(self._stored[name])
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)


def load_trained(
    checkpoint: OpenCheckpoint,
    teacher: str | None = None,
    resolution: int | None = None,
    option: str = "ckpt_path",
    teacher_option: str = "teacher",
    ema_width: float | None = None,
    in_files: bool = False,
) -> Trained:
    """Load the generator's EMA from a checkpoint, with the other parts of its teacher.

    Args:
        checkpoint: The checkpoint.
        teacher: The teacher's folder or Hub id; by default the training's.
        resolution: Pixels per side of an image; by default the training's.
        option: The option that named the checkpoint, for messages.
        teacher_option: The option that names the teacher, for messages.
        ema_width: Relative width of an EMA to make from the run's snapshots, in place of its own.
        in_files: Leave the weights of the generator and of the text encoders in their files until
            each is read, to write them; the generator then cannot be sampled.

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
    dtypes = IN_FILES if in_files else FLOAT32
    loaded = families.load(**where, resolution=resolution, option=teacher_option, dtypes=dtypes)
    start = len(_EMA)
    state = checkpoint.content["state_dict"]
    stored = {k[start:]: v for k, v in state.items() if k.startswith(_EMA)}
    if ema_width is not None:
        seen = checkpoint.iterations * checkpoint.config["data"]["batch_size"]
        stored |= post_hoc_ema(checkpoint.path.absolute().parent.parent, seen, ema_width)
    ema = _Joined(stored)
    if damaged := first_not_finite(ema):
        raise UsageError(
            f"--{option}: the weight {damaged!r} of the generator in {path!r} is not finite. Give "
            "an earlier checkpoint."
        )
    network: Any = loaded.network
    lora = options.get("lora", {}).get("generator")
    if lora:
        if source := options.get("init", {}).get("generator"):
            network = load_network(source, loaded, option, dtypes.network)
        network = adapt(network, LoRA(**lora), seed=0, option=option)
    if different := first_difference(stored, adapters(network) or network.state_dict()):
        raise UsageError(
            f"--{option}: {different.between(repr(path), 'the teacher')}: it was trained with "
            "another teacher. Give that one with `export --teacher`."
        )
    weights: Mapping[str, Tensor] = ema
    if lora or not in_files:
        network.load_state_dict(dict(ema))
    if in_files:
        weights = Merged(network) if lora else ema
        loaded.network = skeleton(backbone(network))
    else:
        loaded.network = merge(network)
        weights = loaded.network.state_dict()
    adapted = network if lora else None
    Flow.of(options).set_times(loaded.schedule)
    text = options.get("text") or {}
    length, null = text.get("max_sequence_length"), text.get("null")
    set_text(Text(max_sequence_length=length, null=null), loaded)
    method = Method.of(options).of_teacher(loaded.schedule, sampling=True)
    recipe = method.recipe(NO_GUIDANCE)
    steps = options["num_steps"]
    return Trained(loaded, recipe.t_init, steps, record, adapted, recipe.noise, weights)
