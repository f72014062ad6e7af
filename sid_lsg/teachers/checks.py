"""Check that a model's configurations ask for nothing that a family does not do.

A family lists the configuration fields of its networks that it knows. A field that changes how a
network must be called has to have one of its harmless values; a field that is not listed, for
example of a later release, has to be null. The weights' shapes do not show either.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from sid_lsg.messages.errors import UsageError


@dataclass(frozen=True)
class Fields:
    """The configuration fields of a network that a family knows.

    Attributes:
        free: Fields that may have any value: the network handles them itself, or its weights'
            shapes depend on them.
        only: Accepted values of fields that change how a network must be called.
        positive: Fields that must be positive numbers.
        numbers: Fields that must be lists of finite numbers.
        foreign: Values that tell another family's network of the same shapes, and whose it is.
    """

    free: frozenset[str]
    only: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    positive: frozenset[str] = frozenset()
    numbers: frozenset[str] = frozenset()
    foreign: Mapping[str, Mapping[Any, str]] = field(default_factory=dict)

    def but(self, **only: tuple[Any, ...]) -> "Fields":
        """Return the fields with other accepted values; `...` accepts any value."""
        values = {name: found for name, found in only.items() if found != (...,)}
        free = self.free - values.keys() | (only.keys() - values.keys())
        kept = {name: found for name, found in self.only.items() if name not in only}
        return replace(self, free=free, only=kept | values)

    def problem(self, config: Mapping[str, Any], part: str) -> str | None:
        """Describe the first field that a network of this configuration cannot have.

        Args:
            config: The configuration.
            part: The network's name, for the message.
        """
        for name, value in config.items():
            if name.startswith("_") or name in self.free:
                continue
            for one, owner in self.foreign.get(name, {}).items():
                if value == one:
                    return f"its {part} is {owner} ({name} {value!r})"
            if name in self.positive:
                if not _is_positive(value):
                    return f"the config of its {part} has {name} {value!r}, not a positive number"
                continue
            if name in self.numbers:
                if not isinstance(value, list) or not all(_is_finite(number) for number in value):
                    return f"the config of its {part} has {name} {value!r}, not a list of numbers"
                continue
            accepted = self.only.get(name, (None,))
            if not any(value is one or value == one for one in accepted):
                wanted = " or ".join("null" if one is None else repr(one) for one in accepted)
                known = "" if name in self.only else ", a field that is not known here"
                return f"the config of its {part} has {name} {value!r}{known}, not {wanted}"
        return None


def _is_finite(value: object) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and -math.inf < value < math.inf  # type: ignore[operator]


def _is_positive(value: object) -> bool:
    return _is_finite(value) and value > 0  # type: ignore[operator]


def names(text: str) -> frozenset[str]:
    """Return the words of a text, as names of fields."""
    return frozenset(text.split())


def check_steps(scheduler_config: Mapping[str, Any], num_steps: int, option: str) -> None:
    """Reject one step with a scheduler whose last time is given.

    diffusers stretches the times from 1 to `shift_terminal` by 1 minus the last of them. A single
    time would be 0 / 0.

    Args:
        scheduler_config: The configuration of a scheduler of diffusers.
        num_steps: The number of steps.
        option: The option that gave it, for the message.

    Raises:
        UsageError: If one step is not possible.
    """
    if num_steps == 1 and (last := scheduler_config.get("shift_terminal")):
        raise UsageError(
            f"--{option} is 1, but the model's scheduler ends at the time {last:g} "
            "(shift_terminal), for which it needs two steps. Use at least 2."
        )


def refuse_problem(problem: str | None, option: str, family: str, example: str | None) -> None:
    """Raise the error for a model that a family cannot use, if there is a problem.

    Args:
        problem: What is wrong, as a sentence without a period.
        option: The option that named the model.
        family: The family's name.
        example: A Hub id of the family, for the remedy.

    Raises:
        UsageError: If there is a problem.
    """
    if problem:
        such = f", such as {example}" if example else ""
        raise UsageError(f"--{option}: {problem}. Give a text-to-image model of {family}{such}.")
