"""Options of flow-matching teachers: the distribution of times, and the shift."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from sid_lsg.messages.checks import refuse
from sid_lsg.messages.errors import UsageError

if TYPE_CHECKING:
    from sid_lsg.method.schedule import Schedule


@dataclass(frozen=True)
class Flow:
    """Times of a flow-matching teacher, from 0 (data) to 1 (noise).

    Args:
        location: The losses are evaluated at t = sigmoid(location + scale n) with normal n; by
            default log 2, for a median of 2/3.
        scale: See location; by default 1.6.
        shift: Shift the generator's times towards noise, t to shift t / (1 + (shift - 1) t); by
            default 1, no shift. The times of the losses are not shifted.
    """

    location: float | None = None
    scale: float | None = None
    shift: float | None = None

    def __post_init__(self) -> None:
        """Validate the numbers.

        Raises:
            UsageError: For the first number out of range.
        """
        if self.location is not None and not math.isfinite(self.location):
            refuse("model.flow.location", self.location, "a finite number")
        for name in ("scale", "shift"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                refuse(f"model.flow.{name}", value, "a positive number")

    def set_times(self, schedule: "Schedule") -> None:
        """Set the times of a teacher's schedule.

        Raises:
            UsageError: If an option is given for a teacher without flow matching.
        """
        given = {f.name: v for f in fields(self) if (v := getattr(self, f.name)) is not None}
        for name, value in given.items():
            if name not in flow_times(schedule):
                raise UsageError(
                    f"--model.flow.{name} is {value}, but this teacher does not use flow matching. "
                    "Leave it out."
                )
            setattr(schedule, name, value)

    @classmethod
    def of(cls, model: Mapping[str, Any]) -> "Flow":
        """Read the options from the `model` section of a configuration, also of an earlier run."""
        return cls(**(model.get("flow") or {}))


def flow_times(schedule: "Schedule") -> dict[str, float]:
    """Return the options of a schedule's times by name; empty without flow matching."""
    from sid_lsg.method.flow import FlowSchedule

    if not isinstance(schedule, FlowSchedule):
        return {}
    return {field.name: getattr(schedule, field.name) for field in fields(Flow)}
