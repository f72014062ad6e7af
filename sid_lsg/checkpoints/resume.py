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
from sid_lsg.checkpoints.shards import MANIFEST
from sid_lsg.distributed.sharding import Pieces
from sid_lsg.files.weights import first_difference, first_not_finite
from sid_lsg.messages.errors import UsageError
from sid_lsg.networks.lora import check_adapters_record, is_adapter

# Optimizer states that have the shape of their weight; others may have any shape.
ELEMENTWISE = frozenset(
    ("exp_avg", "exp_avg_sq", "exp_inf", "max_exp_avg_sq", "momentum_buffer", "square_avg", "sum")
)

# Optimizer classes that can load the states of another class.
_CONTINUED_BY = {"AdamWithoutMomentum": "Adam"}


def open_resumed(ckpt_path: str | None, folder: Path) -> OpenCheckpoint | None:
    """Open the checkpoint that `--ckpt_path` names.

    Args:
        ckpt_path: The option's value: a checkpoint, a run directory, `last` or None.
        folder: The folder in which `last` is searched.

    Returns:
        The checkpoint; None for a new run, and for one that Lightning resumes (`hpc`).

    Raises:
        UsageError: If there is no checkpoint there, or it is damaged or not one of a run.
    """
    if ckpt_path in (None, "hpc"):
        return None
    if ckpt_path == "best":
        raise UsageError(
            f"--ckpt_path best: name the file, for example {str(folder / BEST)!r}, or `last`."
        )
    if ckpt_path == "last":
        return newest(folder)
    path = Path(str(ckpt_path)).expanduser()
    if not ckpt_path or not path.exists():
        raise UsageError(
            f"--ckpt_path: there is no file {str(ckpt_path)!r}. Give a checkpoint of this model, "
            "or `last` for the newest one in the run directory."
        )
    if kind := _other_kind(path):
        raise UsageError(f"--ckpt_path: {str(path)!r} {kind}")
    if path.is_dir() and path.suffix != ".ckpt" and not (path / MANIFEST).is_file():
        return _newest_of(path)
    return open_checkpoint(path, remedy=CONTINUE)


def _newest_of(folder: Path) -> OpenCheckpoint:
    """Open the newest checkpoint of a run directory, or of its folder `checkpoints`.

    Raises:
        UsageError: If there is none.
    """
    inside = folder / "checkpoints"
    found = newest(inside if inside.is_dir() else folder, "ckpt_path")
    if found is None:
        raise UsageError(
            f"--ckpt_path: the folder {str(folder)!r} contains no checkpoint. Give a .ckpt file, "
            "or a run directory with one."
        )
    return found


def _other_kind(path: Path) -> str:
    """Describe a model that is not a checkpoint, and what to do with it; "" for other files."""
    start = "Start a new run from it with --model.init.generator"
    if (path / "model_index.json").is_file() or (path / "unet" / "config.json").is_file():
        return f"is an exported model: it has neither optimizers nor fake score. {start}."
    if (path / "config.json").is_file() or path.suffix in (".safetensors", ".bin"):
        return f"contains weights, but neither optimizers nor fake score. {start}."
    if path.suffix in (".pkl", ".pickle"):
        return (
            "is not a checkpoint of a run. For a file of the official code, `import-official` "
            "makes a model that --model.init.generator reads."
        )
    return ""


def check_resume(
    found: OpenCheckpoint, module: Any, batch_size: int | None = None, max_steps: int = -1
) -> None:
    """Check that a run can resume from a checkpoint; nothing is written.

    A different seed only gives a warning.

    Args:
        found: The checkpoint.
        module: The module of the resumed run.
        batch_size: Batch size of the resumed run; None to allow any.
        max_steps: Iterations of the whole run; -1 for no limit.

    Raises:
        UsageError: If the checkpoint is of another model or batch size, has more iterations, or
            contains a number that is not finite.
    """
    check_weights(module.state_dict(), found.content["state_dict"])
    check_adapters_record(module, found.content)
    check_optimizers(
        module.new_optimizers(),
        found.content["optimizer_states"],
        found.content.get("optimizer_names"),
    )
    check_finite(found.content, str(found.path))
    if 0 <= max_steps < found.iterations:
        raise UsageError(
            f"--trainer.max_steps is {max_steps}, but this checkpoint already has "
            f"{found.iterations} iterations. Give more, or start a new run."
        )
    _check_batch(found.config.get("data", {}).get("batch_size"), batch_size)
    before = found.config.get("seed_everything")
    if before not in (None, module.seed):
        rank_zero_warn(
            f"--seed_everything: the run started with {before} and continues with {module.seed}, "
            f"so neither seed reproduces it. Give {before} to keep its seed."
        )


def _check_batch(before: int | None, batch_size: int | None) -> None:
    """Reject a different batch size, which would change images seen and the order of prompts."""
    if batch_size and before not in (None, batch_size):
        raise UsageError(
            f"--data.batch_size: the run started with {before}, not {batch_size}, so its images "
            f"seen and prompts would be counted wrongly. Give {before}, or start a new run from "
            "its generator with --model.init.generator."
        )


def check_weights(own: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    """Reject weights whose names or shapes differ from the module's.

    Raises:
        UsageError: For the first difference.
    """
    _check_adapters(own, found)
    if different := first_difference(found, own):
        kind, remedy = _origin(different.name)
        raise UsageError(
            f"--ckpt_path: {different.between('the file', f'this {kind}')}: it is of another "
            f"model. Give the {remedy} of its run, or another checkpoint."
        )


def check_finite(content: Mapping[str, Any], path: str) -> None:
    """Reject weights and optimizer states with NaN or infinity, by name.

    Raises:
        UsageError: For the first one.
    """
    places = {f"the weight {name!a}": value for name, value in content["state_dict"].items()}
    for number, optimizer in enumerate(content["optimizer_states"], start=1):
        for place, state in optimizer["state"].items():
            places |= {
                f"{name!r} of optimizer {number}'s weight {place}": value
                for name, value in state.items()
                if name in ELEMENTWISE
            }
    for name, value in places.items():
        for part in value.parts if isinstance(value, Pieces) else [value]:
            if isinstance(part, Tensor) and first_not_finite({name: part}):
                raise UsageError(
                    f"--ckpt_path: {name} in {path!r} is not finite: its training diverged, or the "
                    "file is damaged. Give an earlier checkpoint."
                )


def _check_adapters(own: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    """Reject adapters for a fully trained network, and full weights for one with adapters."""
    for network in dict.fromkeys(name.split(".")[0] for name in own):
        ours, theirs = (
            [is_adapter(name) for name in of if name.startswith(f"{network}.")]
            for of in (own, found)
        )
        option = f"--model.lora.{network.replace('ema', 'generator')}"
        if theirs and any(ours) and not any(theirs):
            raise UsageError(
                f"--ckpt_path: the file contains all weights of {network!r}, but {option} trains "
                "only adapters. Leave that option out, or give another checkpoint."
            )
        if any(theirs) and not any(ours):
            raise UsageError(
                f"--ckpt_path: the file contains LoRA adapters of {network!r}, but all its weights "
                f"are trained. Give the {option} of its run, or another checkpoint."
            )


def _origin(name: str) -> tuple[str, str]:
    """Return the origin of a weight, and the option that sets it."""
    if name.startswith("averages."):
        return "run", "--model.ema.snapshot_images"
    if not is_adapter(name):
        return "teacher", "teacher"
    network = name.split(".")[0].replace("ema", "generator")
    return "run", f"--model.lora.{network}"


def check_optimizers(
    own: Iterable[Optimizer],
    found: Iterable[Mapping[str, Any]],
    names: Sequence[str] | None = None,
) -> None:
    """Reject optimizer states of other weights or of another optimizer class.

    Args:
        own: The optimizers.
        found: The states.
        names: The class names of the optimizers in the file, if it contains them.

    Raises:
        UsageError: For the first difference.
    """
    own, found = [*own], [*found]
    remedy = "Give the optimizers of its run, or another checkpoint."
    if len(own) != len(found):
        raise UsageError(
            f"--ckpt_path: the file contains {len(found)} optimizers, not {len(own)}. {remedy}"
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
