"""The paper's guidance strategies as four kappas, and the values that are rejected."""

import math
from typing import Any

import pytest

from sid_lsg.messages.errors import UsageError
from sid_lsg.method.guidance import Kappas
from sid_lsg.options.guidance import Guidance


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, (1.5, 1.5, 1.5, 1.5)),
        ({"preset": "none"}, (1, 1, 1, 1)),
        ({"preset": "none", "scale": 1}, (1, 1, 1, 1)),
        ({"preset": "long"}, (1, 1, 1, 1.5)),
        ({"preset": "long", "scale": 4.5}, (1, 1, 1, 4.5)),
        ({"preset": "short"}, (0.5, 0.5, 0.5, 1)),
        ({"preset": "short", "scale": 0.2}, (0.2, 0.2, 0.2, 1)),
        ({"preset": "lsg", "scale": 3}, (3, 3, 3, 3)),
        ({"scale": 1}, (1, 1, 1, 1)),
        ({"scale": 0}, (0, 0, 0, 0)),
    ],
)
def test_presets(options: dict[str, Any], expected: tuple[float, ...]) -> None:
    assert Guidance(**options).kappas == Kappas(*expected)
    assert all(isinstance(kappa, float) for kappa in Guidance(**options).kappas)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"train_fake": 1}, (1, 2, 2, 2)),
        ({"eval_fake": 0.5}, (2, 0.5, 0.5, 2)),
        ({"eval_fake": [3, 4]}, (2, 3, 4, 2)),
        ({"eval_real": 0}, (2, 2, 2, 0)),
        ({"train_fake": 1, "eval_fake": [2, 3], "eval_real": 4}, (1, 2, 3, 4)),
    ],
)
def test_a_given_scale_replaces_the_presets(
    options: dict[str, Any], expected: tuple[float, ...]
) -> None:
    assert Guidance(scale=2, **options).kappas == expected


def test_a_given_scale_guides_under_the_preset_none() -> None:
    assert Guidance("none", eval_real=4.5).kappas == (1, 1, 1, 4.5)


@pytest.mark.parametrize(("scale", "sampled"), [(4.5, 4.5), (1, 1), (0.5, 1), (-2, 1)])
def test_the_teacher_is_sampled_at_kappa_4_or_unguided(scale: float, sampled: float) -> None:
    assert Guidance(eval_real=scale).kappas.sampling == sampled


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["scale", "train_fake", "eval_fake", "eval_real"])
def test_nonfinite_scales_are_rejected(name: str, value: float) -> None:
    with pytest.raises(UsageError, match=rf"--model\.guidance\.{name} .* got {value}"):
        Guidance(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("pair", [[1.0, math.nan], [math.inf, 1.0]])
def test_both_scales_of_a_pair_are_checked(pair: list[float]) -> None:
    with pytest.raises(UsageError, match=r"--model\.guidance\.eval_fake must be a finite number"):
        Guidance(eval_fake=pair)


@pytest.mark.parametrize("pair", [[], [1.0], [1.0, 2.0, 3.0]])
def test_eval_fake_accepts_one_number_or_two(pair: list[float]) -> None:
    with pytest.raises(UsageError, match=r"--model\.guidance\.eval_fake takes one number or two"):
        Guidance(eval_fake=pair)


@pytest.mark.parametrize("scale", [0, 1.5])
def test_a_scale_for_the_preset_none_is_rejected(scale: float) -> None:
    with pytest.raises(UsageError, match=rf"--model\.guidance\.scale is {scale}, .*'none'"):
        Guidance("none", scale=scale)
