"""Values out of range, refused by the name of the option."""

import math
from typing import Any

from sid_lsg.messages.errors import UsageError


def refuse(option: str, value: Any, wanted: str) -> None:
    """Raise the message for a value that an option cannot take."""
    raise UsageError(f"--{option} must be {wanted}, got {value!r}.")


def beside(option: str, name: str) -> str:
    """Name another option of an option's command: model.teacher's resolution, and model's."""
    section, dot, _ = option.rpartition(".")
    return f"{section}{dot}{name}"


def check_teacher_guidance(option: str, scale: float) -> None:
    """Refuse a scale below 1 for sampling a teacher, where diffusers does not guide at all.

    Raises:
        UsageError: If it is one, or not finite.
    """
    if not 1 <= scale < math.inf:
        refuse(option, scale, "a finite number of at least 1, which means no guidance")
