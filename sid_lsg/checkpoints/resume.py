"""Validate a checkpoint before resuming; nothing is written."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer

from sid_lsg.checkpoints.opening import (
    BEST,
    CONTINUE,
    OpenCheckpoint,
    newest,
    open_checkpoint,
)
from sid_lsg.files.weights import first_difference
from sid_lsg.messages.errors import UsageError
from sid_lsg.networks.lora import check_adapters_record, is_adapter

# The optimizer states with the shape of their weight; others may have any shape.
ELEMENTWISE = frozenset(
    ("exp_avg", "exp_avg_sq", "exp_inf", "max_exp_avg_sq", "momentum_buffer", "square_avg", "sum")
)

# Optimizers that continue from the states of another class.
_CONTINUED_BY = {"AdamWithoutMomentum": "Adam"}


def open_resumed(ckpt_path: str | None, folder: Path) -> OpenCheckpoint | None:
    """Open the checkpoint that `--ckpt_path` names.

    Args:
        ckpt_path: The option's value.
        folder: Where `last` is looked for.

    Returns:
        The checkpoint; None for a run that begins afresh, or is continued by Lightning (`hpc`).

    Raises:
        UsageError: If there is no such file, it is damaged, or it is not of a training.
    """
    if ckpt_path in (None, "hpc"):
        return None
    if ckpt_path == "best":
        raise UsageError(
            f"--ckpt_path best: name the file, for example {str(folder / BEST)!r}, or `last`."
        )
    if ckpt_path == "last":
        return newest(folder)
    path = Path(str(ckpt_path))
    if not path.exists():
        raise UsageError(
            f"--ckpt_path: there is no file {str(path)!r}. Give a checkpoint of this model, or "
            "`last` for the newest one in the run directory."
        )
    return open_checkpoint(path, remedy=CONTINUE)


def check_resume(
    found: OpenCheckpoint, module: Any, batch_size: int | None = None, max_steps: int = -1
) -> None:
    """Check that a run can be continued from a checkpoint; nothing is written.

    Another seed than the run's own is a warning.

    Args:
        found: The checkpoint.
        module: The module that is to continue.
        batch_size: The batch size that it is to continue with; None for any.
        max_steps: The iterations of the whole run; -1 for no end.

    Raises:
        UsageError: If the checkpoint is of another model or batch size, or past the end.
    """
    check_weights(module.state_dict(), found.content["state_dict"])
    check_adapters_record(module, found.content)
    check_optimizers(
        module.configure_optimizers(),
        found.content["optimizer_states"],
        found.content.get("optimizer_names"),
    )
    if 0 <= max_steps < found.iterations:
        raise UsageError(
            f"--trainer.max_steps: the run is to end after {max_steps} iterations, and this "
            f"checkpoint has done {found.iterations}. Give more, or begin a new run."
        )
    _check_batch(found.config.get("data", {}).get("batch_size"), batch_size)
    before = found.config.get("seed_everything")
    if before not in (None, module.seed):
        rank_zero_warn(
            f"--seed_everything: the run was made with {before} and goes on with {module.seed}, "
            f"so neither seed repeats it. Give {before} to continue it as it was begun."
        )


def _check_batch(before: int | None, batch_size: int | None) -> None:
    """Reject another batch size: images seen and the order of prompts are counted in batches."""
    if batch_size and before not in (None, batch_size):
        raise UsageError(
            f"--data.batch_size: the run was made with {before}, not {batch_size}: its images seen "
            f"and prompts would be counted wrongly. Give {before}, or begin a new run from its "
            "generator with --model.init.generator."
        )


def check_weights(own: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    """Reject weights that differ in a name or a shape from those of the module.

    Raises:
        UsageError: For the first of them.
    """
    _check_adapters(own, found)
    if different := first_difference(found, own):
        kind, remedy = _origin(different.name)
        raise UsageError(
            f"--ckpt_path: {different.between('the file', f'this {kind}')}: it is of another "
            f"model. Give the {remedy} that it was made with, or another checkpoint."
        )


def _check_adapters(own: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    """Reject adapters of a network that is trained whole, and all weights of one with adapters."""
    for network in dict.fromkeys(name.split(".")[0] for name in own):
        ours, theirs = (
            [is_adapter(name) for name in of if name.startswith(f"{network}.")]
            for of in (own, found)
        )
        option = f"--model.lora.{network.replace('ema', 'generator')}"
        if theirs and any(ours) and not any(theirs):
            raise UsageError(
                f"--ckpt_path: the file holds all weights of {network!r}, of which {option} trains "
                "adapters alone. Leave that option out, or give another checkpoint."
            )
        if any(theirs) and not any(ours):
            raise UsageError(
                f"--ckpt_path: the file holds LoRA adapters of {network!r}, all of which is to be "
                f"trained. Give the {option} that it was made with, or another checkpoint."
            )


def _origin(name: str) -> tuple[str, str]:
    """Return where a weight comes from, and the option that gives it back."""
    if not is_adapter(name):
        return "teacher", "teacher"
    network = name.split(".")[0].replace("ema", "generator")
    return "run", f"--model.lora.{network}"


def check_optimizers(
    own: Iterable[Optimizer],
    found: Iterable[Mapping[str, Any]],
    names: Sequence[str] | None = None,
) -> None:
    """Reject optimizer states of other weights, or of another kind of optimizer.

    Args:
        own: The optimizers.
        found: The states.
        names: The names of the optimizers' classes in the file, if it holds them.

    Raises:
        UsageError: For the first difference.
    """
    own, found = [*own], [*found]
    remedy = "Give the optimizers that it was made with, or another checkpoint."
    if len(own) != len(found):
        raise UsageError(
            f"--ckpt_path: the file holds {len(found)} optimizers, not {len(own)}. {remedy}"
        )
    for number, (optimizer, state) in enumerate(zip(own, found, strict=True), start=1):
        kind, before = type(optimizer).__name__, names[number - 1] if names else None
        if before not in (None, kind, _CONTINUED_BY.get(kind)):
            raise UsageError(
                f"--ckpt_path: optimizer {number} is {before} in the file and {kind} here. {remedy}"
            )
        counts = [len(group["params"]) for group in optimizer.param_groups]
        if (others := [len(group["params"]) for group in state["param_groups"]]) != counts:
            raise UsageError(
                f"--ckpt_path: optimizer {number} has groups of {others} weights in the file and "
                f"{counts} here. {remedy}"
            )
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        for place, weight in enumerate(weights):
            for name, value in state["state"].get(place, {}).items():
                if name in ELEMENTWISE and value is not None and value.shape != weight.shape:
                    raise UsageError(
                        f"--ckpt_path: {name!r} of optimizer {number}'s weight {place} is "
                        f"{list(value.shape)} in the file and {list(weight.shape)} here. {remedy}"
                    )
