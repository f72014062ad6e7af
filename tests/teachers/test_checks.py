"""Checks of a model's configurations."""

import warnings
from pathlib import Path

import pytest
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    FlowMatchLCMScheduler,
    UniPCMultistepScheduler,
)

from sid_lsg.cli import main
from sid_lsg.generation.models import load_model, open_model
from sid_lsg.messages.errors import UsageError
from sid_lsg.options.choices import SamplerName
from sid_lsg.teachers.checks import check_steps
from tests.helpers.tiny_families import EVERYTHING, FAMILIES, command


@pytest.mark.parametrize(
    "scheduler",
    [
        FlowMatchEulerDiscreteScheduler(shift_terminal=0.02),
        FlowMatchLCMScheduler(shift_terminal=0.5),
        UniPCMultistepScheduler(
            use_flow_sigmas=True, prediction_type="flow_prediction", shift_terminal=0.1
        ),
    ],
)
def test_one_step_needs_a_scheduler_whose_last_time_is_free(
    scheduler: FlowMatchEulerDiscreteScheduler,
) -> None:
    with warnings.catch_warnings(action="ignore"):
        scheduler.set_timesteps(1)
    assert scheduler.sigmas[0].isnan()
    with pytest.raises(UsageError, match=r"--num_steps is 1, .*\(shift_terminal\).* at least 2"):
        check_steps(scheduler.config, 1, "num_steps")
    check_steps(scheduler.config, 2, "num_steps")
    check_steps(type(scheduler)().config, 1, "num_steps")


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["pipeline", "ddim"])
def test_one_step_of_such_a_teacher_is_refused(sampler: SamplerName) -> None:
    at = open_model(str(FAMILIES["qwen_image"].folder), sampler)
    with pytest.raises(UsageError, match="--num_steps is 1"):
        at(1, 1.0)
    assert at(2, 1.0).sample(["a red cat"], [0]).isfinite().all()


@pytest.mark.parametrize("callback", ["metrics", "health"])
@pytest.mark.slow
def test_one_step_of_such_a_teacher_is_refused_before_the_training(
    callback: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = EVERYTHING | {f"{callback}__teacher_steps": 1, "trainer__default_root_dir": tmp_path}
    line = command(FAMILIES["qwen_image"], tmp_path, **options)
    with pytest.raises(SystemExit, match="2"):
        main(line)
    assert f"error: --{callback}.teacher_steps is 1" in capsys.readouterr().err


def test_other_teachers_are_sampled_in_one_step() -> None:
    model = load_model(str(FAMILIES["sd3"].folder), "pipeline", num_steps=1, guidance=1.0)
    assert model.sample(["a red cat"], [0]).isfinite().all()
