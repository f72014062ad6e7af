"""Options of few-step and flow-matching training: presets, the teacher's defaults, refusals."""

from typing import Any

import pytest
import torch

from sid_lsg.messages.errors import UsageError
from sid_lsg.method.choices import WEIGHTINGS
from sid_lsg.method.flow import FlowSchedule
from sid_lsg.method.schedule import DiscreteSchedule
from sid_lsg.options.flow import Flow, flow_times
from sid_lsg.options.guidance import Guidance
from sid_lsg.options.method import Method
from sid_lsg.options.text import Text
from sid_lsg.options.training import Gradients

DISCRETE = DiscreteSchedule(torch.ones(1000), torch.ones(1000))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"preset": "zero"}, (0, 0, 0, 1)),
        ({"preset": "zero", "scale": 0}, (0, 0, 0, 1)),
        ({"preset": "anti", "scale": -0.5}, (-0.5, -0.5, -0.5, 1)),
        ({"preset": "anti", "scale": -1, "eval_real": 2}, (-1, -1, -1, 2)),
        ({"preset": "zero", "train_fake": 1}, (1, 0, 0, 1)),
    ],
)
def test_presets(options: dict[str, Any], expected: tuple[float, ...]) -> None:
    assert Guidance(**options).kappas == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "anti"}, "--model.guidance.scale is missing.*negative"),
        ({"preset": "anti", "scale": 0.5}, "--model.guidance.scale is 0.5.*negative"),
        ({"preset": "anti", "scale": 0}, "--model.guidance.scale is 0.*negative"),
        ({"preset": "zero", "scale": 1}, "--model.guidance.scale is 1.*'zero'"),
    ],
)
def test_scales_that_do_not_go_with_the_preset(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Guidance(**options)


def test_options_that_are_left_out_follow_the_teacher() -> None:
    names = ("t_init", "step_training", "weighting", "prompt_dropout")
    for schedule, expected in (
        (DISCRETE, (625, "all", "sid", 0.1)),
        (FlowSchedule(), (999, "last", "1_minus_sigma", 0.0)),
    ):
        found = Method().of_teacher(schedule)
        assert tuple(getattr(found, name) for name in names) == expected
        given = Method(t_init=500, step_training="last", weighting="snr", prompt_dropout=0.3)
        assert given.of_teacher(schedule) == given
        recipe = Method(num_steps=4, noise="ddim").of_teacher(schedule).recipe(Guidance().kappas)
        assert (recipe.t_init, recipe.num_steps, recipe.noise) == (expected[0], 4, "ddim")
        assert (recipe.step_training, recipe.weighting) == expected[1:3]


def test_a_configuration_of_an_earlier_run_has_the_former_defaults() -> None:
    old = {"alpha": 1.0, "t_init": 625, "tmin": 20, "tmax": 980, "num_steps": 2}
    found = Method.of(old | {"prompt_dropout": 0.1}).of_teacher(DISCRETE)
    assert (found.step_training, found.noise, found.weighting, found.fake_steps) == (
        "all", "fresh", "sid", 1,
    )  # fmt: skip
    assert Flow.of(old) == Flow()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"step_training": "first"}, "--model.step_training must be one of all, last"),
        ({"noise": "new"}, "--model.noise must be one of fresh, fixed, ddim"),
        ({"weighting": "x"}, f"--model.weighting must be one of {', '.join(WEIGHTINGS)}"),
        ({"objective": "gan"}, "--model.objective must be one of sid, dmd"),
        ({"fake_steps": 0}, "--model.fake_steps must be 1 to 1000"),
    ],
)
def test_unknown_choices_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Method(**options)


def test_limits_of_integer_times_are_refused_for_a_flow_matching_teacher() -> None:
    with pytest.raises(UsageError, match="--model.tmin and --model.tmax"):
        Method(tmin=5).of_teacher(FlowSchedule())


def test_times_are_set_on_the_schedule() -> None:
    schedule = FlowSchedule()
    Flow(location=0.0, shift=3).set_times(schedule)
    assert flow_times(schedule) == {"location": 0.0, "scale": 1.6, "shift": 3}
    Flow().set_times(DISCRETE)
    assert flow_times(DISCRETE) == {}
    with pytest.raises(UsageError, match="--model.flow.shift is 3, but this teacher"):
        Flow(shift=3).set_times(DISCRETE)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Flow(location=float("nan")), "--model.flow.location must be a finite number"),
        (lambda: Flow(scale=0), "--model.flow.scale must be a positive number"),
        (lambda: Flow(shift=-1), "--model.flow.shift must be a positive number"),
        (lambda: Gradients(generator_scale=0), "--model.gradients.generator_scale must be"),
        (lambda: Text(precision="16"), "--model.text.precision must be 32, bf16 or int8"),
        (lambda: Text(device="gpu"), "--model.text.device must be cpu, drop or null"),
        (
            lambda: Text(max_sequence_length=-1),
            "--model.text.max_sequence_length must be at least 0",
        ),
    ],
)
def test_values_out_of_range_are_refused(make: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make()
