"""Every value out of range is refused by the name of its option; the limits themselves pass."""

import math
import re
from types import SimpleNamespace
from typing import Any

import pytest

from sid_lsg.messages.checks import check_method, check_timesteps, refuse
from sid_lsg.messages.errors import UsageError

inf, nan = math.inf, math.nan


def options(**changed: Any) -> SimpleNamespace:
    """Return the paper's values with some changed."""
    paper = {
        "alpha": 1.0,
        "t_init": 625,
        "tmin": 20,
        "tmax": 980,
        "num_steps": 1,
        "prompt_dropout": 0.1,
        "micro_batch_size": None,
        "ema_halflife_images": 50_000.0,
        "ema_rampup_ratio": 0.05,
        "gradient_clip_val": None,
    }
    assert changed.keys() <= paper.keys()
    return SimpleNamespace(**(paper | changed))


def check(given: SimpleNamespace) -> None:
    check_method(given)
    check_timesteps(given, 1000)


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
        {"ema_halflife_images": 0, "ema_rampup_ratio": 0},
        {"gradient_clip_val": 1e-3},
    ],
)
def test_values_in_range_pass(changed: dict[str, Any]) -> None:
    check(options(**changed))


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
        ("ema_halflife_images", -1.0, "a finite number of at least 0"),
        ("ema_halflife_images", nan, "a finite number of at least 0"),
        ("ema_rampup_ratio", -0.05, "a finite number of at least 0"),
        ("ema_rampup_ratio", nan, "a finite number of at least 0"),
        ("ema_rampup_ratio", inf, "a finite number of at least 0"),
        ("gradient_clip_val", 0.0, "a positive number"),
        ("gradient_clip_val", -1.0, "a positive number"),
        ("gradient_clip_val", nan, "a positive number"),
        ("gradient_clip_val", inf, "a positive number"),
    ],
)
def test_values_out_of_range_are_refused_by_name(name: str, value: float, wanted: str) -> None:
    message = re.escape(f"--model.{name} must be {wanted}") + ".*" + re.escape(f"got {value!r}.")
    with pytest.raises(UsageError, match=message):
        check(options(**{name: value}))


def test_refuse_names_option_wish_and_value() -> None:
    with pytest.raises(UsageError) as refusal:
        refuse("model.tmin", "x", "a number")
    assert str(refusal.value) == "--model.tmin must be a number, got 'x'."
