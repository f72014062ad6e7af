"""Values out of range are rejected by the name of their option; the limits are accepted."""

import math
import re
from typing import Any

import pytest
import torch

from sid_lsg.messages.errors import UsageError
from sid_lsg.method.schedule import DiscreteSchedule
from sid_lsg.options.method import Method

inf, nan = math.inf, math.nan
SCHEDULE = DiscreteSchedule(torch.ones(1000), torch.ones(1000))


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"alpha": -0.5},
        {"tmin": 0, "tmax": 1},
        {"tmax": 1000},
        {"t_init": 1},
        {"t_init": 999},
        {"t_init": 4, "num_steps": 4},
        {"prompt_dropout": 0},
        {"prompt_dropout": 1},
        {"micro_batch_size": 1},
    ],
)
def test_values_in_range_are_accepted(changed: dict[str, Any]) -> None:
    Method(**changed).of_teacher(SCHEDULE)


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("alpha", nan, "a finite number"),
        ("alpha", inf, "a finite number"),
        ("num_steps", 0, "at least 1"),
        ("num_steps", 626, "at most --model.t_init (625)"),
        ("tmin", -1, "at least 0"),
        ("tmin", 980, "smaller than --model.tmax (980)"),
        ("tmax", 1001, "at most 1000"),
        ("t_init", 0, "1 to 999"),
        ("t_init", 1000, "1 to 999"),
        ("prompt_dropout", -0.1, "a probability"),
        ("prompt_dropout", 1.1, "a probability"),
        ("prompt_dropout", nan, "a probability"),
        ("micro_batch_size", 0, "at least 1"),
    ],
)
def test_values_out_of_range_are_rejected_by_name(name: str, value: float, wanted: str) -> None:
    message = re.escape(f"--model.{name} must be {wanted}") + ".*" + re.escape(f"got {value!r}.")
    with pytest.raises(UsageError, match=message):
        Method(**{name: value}).of_teacher(SCHEDULE)  # type: ignore[arg-type]


def test_options_are_read_from_a_configuration() -> None:
    model = {"alpha": 1.2, "t_init": 500, "tmin": 1, "tmax": 900, "num_steps": 2}
    found = Method.of(model | {"prompt_dropout": 0.0, "micro_batch_size": 8, "teacher": "x"})
    assert found == Method(1.2, 500, 1, 900, 2, 0.0, 8)
