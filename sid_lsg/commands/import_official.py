"""`import-official`: convert a generator of the official code to a diffusers folder."""

import reprlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sid_lsg.files.replacing import check_outside, check_writable, replacing, writing
from sid_lsg.messages.checks import refuse
from sid_lsg.messages.errors import UsageError

if TYPE_CHECKING:
    import torch

    from sid_lsg.checkpoints.module_pickle import StoredTensor

_INDEX = "model_index.json"
_STEPS = {"flow_prediction": 4}  # of SiD-DiT's released generators


def import_official(
    checkpoint: str,
    base: str,
    output: str,
    key: str = "ema",
    t_init: int | None = None,
    num_steps: int | None = None,
    revision: str | None = None,
    overwrite: bool = False,
) -> None:
    """Convert a generator of the official SiD-LSG or SiD-DiT code to a diffusers folder.

    The official files are pickled Python objects, which can execute any code when they are loaded.
    This command executes none: it reads the weights as data, and rejects a file that contains
    anything but networks. The folder has the format of `fit` and `export`, in float32.

    Args:
        checkpoint: The .pkl file.
        base: The model that was distilled: a diffusers folder or a Hub id, for example
            stable-diffusion-v1-5/stable-diffusion-v1-5. All but the network's weights come from it.
        output: The folder to write.
        key: Name of the generator's network in the file.
        t_init: The timestep at which the generator was trained; the names of SiD-LSG's released
            files contain it (t625). By default 625, and 999 for flow-matching bases (SiD-DiT).
        num_steps: Steps of the generator; by default 1, and 4 for flow-matching bases.
        revision: Branch, tag or commit of the base on the Hub.
        overwrite: Replace the output folder, if it contains a diffusers model.

    Raises:
        UsageError: If the file is rejected, does not fit the base, or the folder cannot be written.
    """
    import torch
    from lightning.pytorch.utilities import rank_zero_info

    from sid_lsg.checkpoints.official import read_official
    from sid_lsg.export.folder import save_pipeline
    from sid_lsg.teachers import families

    folder = Path(output).expanduser().resolve()
    _check_output(folder, {"checkpoint": checkpoint, "base": base}, overwrite)
    stored, recorded = read_official(checkpoint, key)
    check_writable(folder.parent, "output")
    teacher = families.load(base, revision, option="base")
    first = teacher.schedule.defaults.t_init if t_init is None else t_init
    if not 1 <= first < len(teacher.schedule):
        refuse("t_init", first, f"1 to {len(teacher.schedule) - 1}, a timestep of the base")
    steps = num_steps if num_steps is not None else _STEPS.get(teacher.schedule.prediction_type, 1)
    if not 1 <= steps <= first:
        refuse("num_steps", steps, f"1 to {first}, the generator's timestep")
    own = teacher.network.state_dict()
    _check_fit(stored, own, checkpoint, base)
    _warn_of_options(recorded, teacher.network_options)
    with torch.no_grad():
        for name, tensor in own.items():  # one by one, so that memory holds one network, not two
            tensor.copy_(stored[name].load())
    with writing(folder.parent, "output"), replacing(folder) as temporary:
        save_pipeline(teacher, teacher.network, temporary, first, steps)
    rank_zero_info(f"{folder}: {len(own)} tensors of {checkpoint}, t_init {first}, steps {steps}")


def _check_output(folder: Path, sources: dict[str, str], overwrite: bool) -> None:
    """Reject an output that is not an empty folder, or a model to overwrite."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--output: {str(folder)!r} is not a folder. Choose another name.")
    if not folder.exists() or not any(folder.iterdir()):
        return
    if not (overwrite and (folder / _INDEX).is_file()):
        remedy = ", or give --overwrite true" if (folder / _INDEX).is_file() else ""
        raise UsageError(f"--output: {str(folder)!r} is not empty. Choose another folder{remedy}.")
    check_outside(folder, sources)


def _check_fit(
    stored: "dict[str, StoredTensor]", own: "dict[str, torch.Tensor]", checkpoint: str, base: str
) -> None:
    """Reject a network whose names, shapes or precision do not fit the base's."""
    import torch

    from sid_lsg.checkpoints.inert_pickle import quoted
    from sid_lsg.files.weights import first_difference

    if different := first_difference(stored, own):
        where = repr(checkpoint), f"the network of {base!r}"
        raise UsageError(
            f"--base: {different.between(*where)}. Give the model from which this generator was "
            "distilled."
        )
    for name in sorted(stored):
        kinds = stored[name].dtype, own[name].dtype
        if torch.promote_types(*kinds) != kinds[1]:
            raise UsageError(
                f"--checkpoint: {quoted(name)} is {kinds[0]}, which {kinds[1]} cannot hold."
            )


def _warn_of_options(recorded: dict[str, Any], own: dict[str, Any]) -> None:
    """Warn about options that differ from the base's, which the weights do not show."""
    from lightning.pytorch.utilities import rank_zero_warn

    def plain(value: Any) -> Any:
        return list(value) if isinstance(value, list | tuple) else value

    both = [name for name in own if name in recorded and not name.startswith("_")]
    differing = [name for name in both if plain(recorded[name]) != plain(own[name])]
    if differing:
        each = ", ".join(
            f"{name} {reprlib.repr(recorded[name])} (here {own[name]!r})" for name in differing
        )
        rank_zero_warn(
            f"The generator was saved with other options than the base's: {each}. If its images "
            "are wrong, --base is not the model from which it was distilled."
        )
