"""Find the parts of a model in diffusers' layout, and the pipeline class that they are for."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from sid_lsg.files.hub import HubProblem
from sid_lsg.files.loading import read_json
from sid_lsg.files.sources import Source, located
from sid_lsg.messages.checks import beside
from sid_lsg.messages.errors import UsageError

INDEX = "model_index.json"
NUM_STEPS_KEY = "_num_steps"
"""In a generator's FlowMatchLCMScheduler, whose times do not show it: K, as exported."""

# Parts that distinguish families.
_DISTINGUISHING = ("unet", "transformer", "text_encoder_2", "text_encoder_3")


def read_index(source: Source, option: str, revision: str | None = None) -> dict[str, Any]:
    """Read a model's index: the pipeline class as `_class_name`, and the parts by name.

    Args:
        source: The model.
        option: The option that named the model, for messages.
        revision: Branch, tag or commit on the Hub.

    Returns:
        The index; empty if the model has none.

    Raises:
        UsageError: If the index cannot be read or has no pipeline class, or the Hub does not give
            the model.
    """
    try:
        index = read_json(source, INDEX, revision)
        if index is not None and not isinstance(index.get("_class_name"), str):
            raise ValueError(f"its _class_name is {index.get('_class_name')!r}")
    except HubProblem as problem:
        raise UsageError(
            f"--{option}: could not load {source.name!r} ({problem}). {problem.remedy} "
            "Give its folder, or another id."
        ) from problem
    except (OSError, ValueError) as error:
        raise UsageError(
            f"--{option}: {str(source.path / INDEX)!r} does not name a pipeline ({error}). Give a "
            "folder in diffusers' layout."
        ) from error
    return index or {}


def locate_parts(
    model: str,
    parts: Sequence[str],
    subfolders: Mapping[str, str] | None,
    option: str,
    family: str,
    pipeline: str,
    revision: str | None = None,
    optional: Sequence[str] = (),
) -> tuple[str, dict[str, str], dict[str, Any]]:
    """Find a model's parts, and check that it is in a family's layout.

    Args:
        model: A folder in diffusers' layout, a Hub id or `package:...`.
        parts: The family's parts.
        subfolders: Subfolders of the parts that are not in a subfolder with the part's name.
        option: The option that named the model, for messages.
        family: The family's name, for messages.
        pipeline: The name of the family's pipeline class, for messages.
        revision: Branch, tag or commit on the Hub.
        optional: Parts that the model may lack.

    Returns:
        The folder or Hub id, the subfolder of each part that it has, and the model's index.

    Raises:
        UsageError: If the folder does not exist or is not in the family's layout.
    """
    where = {name: name for name in parts} | dict(subfolders or {})
    if unknown := set(where) - set(parts):
        raise UsageError(
            f"--{_subfolders(option)}: {sorted(unknown)[0]!r} is not a part of the teacher; the "
            f"parts are {', '.join(parts)}."
        )
    source = located(model, option, f"Give a diffusers folder in {family}'s layout or a Hub id.")
    if source.kind == "file":
        raise UsageError(
            f"--{option}: {str(source.path)!r} is a file. Give a diffusers folder with the "
            f"subfolders {', '.join(parts)}. Diffusers converts a file that holds a whole model: "
            f"{pipeline}.from_single_file({str(source.path)!r}).save_pretrained(DIR)"
        )
    index = read_index(source, option, revision)
    for name in optional:
        named = (index.get(name) or [None])[0] is not None
        if not named and not _holds(source, index, name, where[name]):
            del where[name]
    _check_layout(source, where, option, family, index)
    return source.location, where, index


def _holds(source: Source, index: Mapping[str, Any], name: str, path: str) -> bool:
    if source.kind == "folder":
        return (source.path / path).is_dir()
    return path != name or (index.get(name) or [None])[0] is not None


def _check_layout(
    source: Source, where: Mapping[str, str], option: str, family: str, index: Mapping[str, Any]
) -> None:
    holds = partial(_holds, source, index)
    if source.kind == "hub" and not index:
        return  # loading the parts raises the error
    missing = [name for name, path in where.items() if not holds(name, path)]
    foreign = [name for name in _DISTINGUISHING if name not in where and holds(name, name)]
    if missing or foreign:
        found = f"it lacks {', '.join(missing)}" if missing else f"it holds {', '.join(foreign)}"
        kind = f" ({index['_class_name']})" if index else ""
        # The commands have no such option: they take only complete models.
        hint = f", or name them with --{_subfolders(option)}" if "." in option else ""
        raise UsageError(
            f"--{option}: {source.location!r} is not in {family}'s layout: {found}{kind}. Give a "
            f"diffusers folder with the subfolders {', '.join(where)}{hint}."
        )


def _subfolders(option: str) -> str:
    return beside(option, "loading.subfolders")
