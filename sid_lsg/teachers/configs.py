"""Check the stored configuration of one part of a model, before its weights are read."""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import SchedulerMixin
from torch import nn
from transformers import PreTrainedTokenizerBase

from sid_lsg.files.hub import HubProblem
from sid_lsg.files.loading import check_class, read_json
from sid_lsg.files.sources import Source
from sid_lsg.files.weight_files import Unusable
from sid_lsg.method.schedule import PREDICTION_TYPES
from sid_lsg.teachers.checks import Fields

_FLOW = ("flow_prediction", "flow")  # prediction types


def config_problem(
    source: Source, folder: str, revision: str | None, name: str, kind: type, fields: Fields | None
) -> str | None:
    """Describe what a part's configuration asks for and a family does not do.

    Args:
        source: The model.
        folder: The part's subfolder.
        revision: Branch, tag or commit on the Hub.
        name: The part's name, for the message.
        kind: The part's class.
        fields: The fields that a network may have; None if any.

    Returns:
        A sentence without a period, or None. A missing file is left to the part's loading.
    """
    if issubclass(kind, nn.Module):
        file = "config.json"
    elif issubclass(kind, SchedulerMixin):
        file = "scheduler_config.json"
    elif issubclass(kind, PreTrainedTokenizerBase):
        file = "tokenizer_config.json"
    else:
        return None
    try:
        if source.kind == "folder" and file == "tokenizer_config.json":
            _check_clip_files(source.path / folder, kind)
        config = read_json(source, f"{folder}/{file}", revision)
        if config is None:
            return None
        if file == "tokenizer_config.json":
            return _tokenizer_problem(config, name, kind)
        if file == "scheduler_config.json":
            return _scheduler_problem(config, name, kind)
        check_class(kind, config)
    except HubProblem:
        return None
    except Unusable as problem:
        return f"its {name} cannot be used: {problem}"
    except ValueError as error:
        return f"the {file} of its {name} cannot be read ({error})"
    if fields is None:
        return None
    return fields.problem(config, name) or fields.problem(config.get("text_config") or {}, name)


def _scheduler_problem(config: Mapping[str, Any], name: str, kind: type) -> str | None:
    """Compare a stored scheduler with a family's: diffusion has betas, flow matching has none."""
    stored = str(config.get("_class_name"))
    found = getattr(diffusers, stored, None)
    flows = config.get("use_flow_sigmas") or config.get("prediction_type") in _FLOW
    if _has_betas(kind):
        if found is not None and not _has_betas(found):
            return f"its {name} is a {stored}, which has no betas"
        if config.get("use_flow_sigmas"):
            return f"its {name} has use_flow_sigmas: it is of flow matching"
        return _betas_problem(config, name, kind)
    elif found is not None and _has_betas(found) and not flows:
        return f"its {name} is a {stored}, which is not of flow matching"
    return None


def _betas_problem(config: Mapping[str, Any], name: str, kind: Any) -> str | None:
    prediction = config.get("prediction_type", "epsilon")
    if prediction not in PREDICTION_TYPES:
        known = ", ".join(PREDICTION_TYPES)
        return f"the {name}'s prediction_type is {prediction!r}, not one of {known}"
    try:
        with torch.device("cpu"):  # whatever the default device is: the values are needed
            betas = kind.from_config(dict(config)).betas
    except Exception as error:  # any: the fields can have any values
        return f"its {name} cannot be made from its config ({error})"
    if not len(betas) or not ((betas > 0) & (betas <= 1)).all():  # NaN compares as false
        return f"the betas of its {name} are not between 0 and 1"
    return None


def _has_betas(kind: Any) -> bool:
    return "trained_betas" in inspect.signature(kind.__init__).parameters


def _check_clip_files(folder: Path, kind: type) -> None:
    """Check that a folder of CLIP's tokenizer has the vocabulary and the merges.

    Raises:
        Unusable: If it has not; transformers does not name the missing file.
    """
    if not kind.__name__.startswith("CLIPTokenizer") or (folder / "tokenizer.json").is_file():
        return
    for name in ("vocab.json", "merges.txt"):
        if folder.is_dir() and not (folder / name).is_file():
            raise Unusable(f"it has neither tokenizer.json nor {name}")


def _tokenizer_problem(config: Mapping[str, Any], name: str, kind: type) -> str | None:
    stored = config.get("tokenizer_class")
    if stored is None or str(stored).removesuffix("Fast") == kind.__name__.removesuffix("Fast"):
        return None
    return f"its {name} is a {stored}, not a {kind.__name__}"
