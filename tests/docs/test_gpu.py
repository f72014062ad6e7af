"""The prepared measurements on a GPU are options that `benchmark` takes."""

from runpy import run_path
from typing import Any

import pytest

from sid_lsg.commands.benchmark import benchmark
from sid_lsg.commands.fit_options import FitOptions
from sid_lsg.options.benchmark import Benchmark
from sid_lsg.teachers.families import outline
from tests.helpers.paths import REPOSITORY

SCRIPT = run_path(str(REPOSITORY / "docs/gpu.py"))
CASES = SCRIPT["CASES"]


@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.slow
def test_a_case_is_options_of_benchmark(
    case: Any, small: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(REPOSITORY)
    config = FitOptions(benchmark, Benchmark, SCRIPT["arguments"](case, small)).config
    assert config.data.batch_size == config.model.micro_batch_size == (1 if small else case.size)
    assert (config.trainer.accelerator == "cpu") is small
    if small:
        assert outline(config.model.teacher).network is not None


def test_cases_have_names_of_their_own_and_fit_in_ten_minutes() -> None:
    assert len({case.name for case in CASES}) == len(CASES)
    assert max(case.minutes for case in CASES) < 10
