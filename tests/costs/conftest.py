"""Fixtures of the cost tests."""

from collections.abc import Callable
from typing import Any

import pytest

from sid_lsg.costs.plan import Plan, PlannedRun
from sid_lsg.teachers.families import outline
from tests.helpers.counted_costs import GUIDED


@pytest.fixture(scope="module")
def plan(tiny_sd: str) -> Callable[..., PlannedRun]:
    """Return a function that plans a run of the tiny pipeline."""
    teacher, known = outline(tiny_sd), dict[Any, Any]()

    def make(**options: Any) -> PlannedRun:
        usual = {"kappas": GUIDED, "batch_size": 32, "micro_batch_size": 4}
        return PlannedRun(Plan(**usual | options), teacher, known)

    return make
