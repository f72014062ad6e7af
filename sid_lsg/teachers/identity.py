"""Hash what a teacher's images depend on."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from sid_lsg.files.replacing import text_hash
from sid_lsg.files.weights import weights_hash
from sid_lsg.teachers.base import Teacher
from sid_lsg.teachers.precision import autocast_dtype


def teacher_hash(teacher: Teacher, prompts: Sequence[str]) -> str:
    """Return the SHA-256 of all that a teacher's images of prompts depend on.

    These are the weights and configurations of its parts, the tokens of the prompts, and its
    settings. The hash does not depend on where the model is stored, or on its device.
    """
    parts: dict[str, nn.Module] = dict(teacher.named_children()) | teacher.text_parts
    weights: dict[str, Tensor] = dict(teacher.state_dict())
    for name, part in teacher.text_parts.items():
        weights |= {f"{name}.{key}": value for key, value in part.state_dict().items()}
    settings = {
        "family": type(teacher).__name__,
        "teacher": _plain(teacher),
        "parts": {name: [*_settings(part)] for name, part in sorted(parts.items())},
        "scheduler": dict(teacher.scheduler_config),
        "frozen_dtype": str(autocast_dtype(teacher.network)),
        "max_sequence_length": teacher.max_sequence_length,
    }
    texts = [*prompts, ""]  # the null conditioning's, too
    return text_hash(
        [
            weights_hash(weights),
            weights_hash(teacher.tokenize(texts)),
            json.dumps(settings, sort_keys=True, default=str),
        ]
    )


def _settings(part: nn.Module) -> Iterator[dict[str, Any]]:
    """Yield the plain attributes and the configurations of a part, each once."""
    yield _plain(part)
    seen = set()
    for module in part.modules():
        config: Any = getattr(module, "config", None)
        if config is not None and id(config) not in seen:
            seen.add(id(config))
            found = config.to_dict() if hasattr(config, "to_dict") else dict(config)
            # Not where it was loaded from.
            yield {name: value for name, value in found.items() if not name.startswith("_")}


def _plain(module: nn.Module) -> dict[str, Any]:
    """Return a module's own attributes that are numbers, texts or tuples of these."""
    return {n: v for n, v in vars(module).items() if isinstance(v, str | int | float | tuple)}
