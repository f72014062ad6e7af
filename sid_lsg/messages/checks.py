"""Reject option values that are out of range."""

import math
from typing import Any

from sid_lsg.messages.errors import UsageError


def refuse(option: str, value: Any, wanted: str) -> None:
    """Raise the error for a value that an option does not accept.

    Args:
        option: Name of the option, without dashes.
        value: The value.
        wanted: What the option accepts, after "must be".

    Raises:
        UsageError: Always.
    """
    raise UsageError(f"--{option} must be {wanted}, got {value!r}.")


def beside(option: str, name: str) -> str:
    """Return the dotted name of another option in the section of an option."""
    section, dot, _ = option.rpartition(".")
    return f"{section}{dot}{name}"


def check_teacher_guidance(option: str, scale: float) -> None:
    """Reject a scale below 1 for sampling a teacher; diffusers ignores scales below 1.

    Raises:
        UsageError: If the scale is below 1 or not finite.
    """
    if not 1 <= scale < math.inf:
        refuse(option, scale, "a finite number of at least 1, which means no guidance")
