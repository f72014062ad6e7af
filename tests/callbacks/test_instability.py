"""Logged values that are unstable, and healthy ones that are not."""

import math

import pytest
import torch

from sid_lsg.callbacks.instability import BASELINE, RECENT, Instability

HEALTHY = {
    "loss_fake": 20.0,
    "loss_generator": -5.0,
    "grad_norm_fake": 60.0,
    "grad_norm_generator": 200.0,
    "update_ratio_fake": 6e-4,
    "update_ratio_generator": 7e-4,
    "skipped_samples": 0.0,
    "nonfinite_gradients": 0.0,
}


def judge(*changes: dict[str, float], window: int = 50) -> list[str]:
    """Judge a healthy past and then the changed values; return the message for each change."""
    instability = Instability(spike=20, update_ratio=0.02, nonfinite=0.01, window=window)
    said = []
    for change in [*[{}] * BASELINE, *changes]:
        metrics = {name: torch.tensor(value) for name, value in (HEALTHY | change).items()}
        said.append(instability.judge(metrics, batch_size=50))
    assert not any(said[:BASELINE])
    return said[BASELINE:]


@pytest.mark.parametrize("name", list(HEALTHY)[:6])
def test_a_lasting_increase_is_a_spike_and_one_outlier_is_not(name: str) -> None:
    change = {name: 21 * HEALTHY[name]}
    values = judge({}, change, {}, {}, change, change)
    assert [bool(said) for said in values] == [False] * 5 + [True]
    assert values[-1].startswith(f"{name} is {abs(21 * HEALTHY[name]):.3g} in size, usually ")
    assert not any(judge(*[{name: 19 * HEALTHY[name]}] * 5))


def test_a_loss_around_zero_is_compared_by_its_magnitude() -> None:
    around = [{"loss_generator": value} for value in (1.0, -2.0, 0.001, -1.5, 3.0, 1e-5) * 3]
    assert not any(judge(*around))
    assert judge(*around, *[{"loss_generator": -101.0}] * 2)[-1]


def test_the_baseline_is_a_sliding_window() -> None:
    values = [60.0] * 30 + [60.0 * 15] * 10 + [60.0 * 15**2] * RECENT
    rise = [{"grad_norm_fake": value} for value in values]
    assert not any(judge(*rise, window=5))
    assert judge(*rise, window=50)[-1]


@pytest.mark.parametrize(
    ("change", "seen"),
    [
        ({"skipped_samples": 2.0}, "2.0% of the samples"),
        ({"nonfinite_gradients": 0.25}, "25.0% of the gradients' entries"),
        ({"loss_fake": math.nan}, "loss_fake is inf"),
    ],
)
def test_lasting_nonfinite_values_are_detected(change: dict[str, float], seen: str) -> None:
    values = judge({}, change, {}, {}, change, change)
    assert [bool(said) for said in values] == [False] * 5 + [True]
    assert seen in values[-1]


@pytest.mark.parametrize("value", [0.021, math.nan, math.inf])
def test_a_too_large_update_is_detected_at_once(value: float) -> None:
    instability = Instability(spike=20, update_ratio=0.02, nonfinite=0.01, window=50)
    metrics = HEALTHY | {"update_ratio_fake": value}
    said = instability.judge({name: torch.tensor(v) for name, v in metrics.items()}, 50)
    assert said == f"update_ratio_fake is {value:.3g} (limit 0.02)"


def test_skipped_samples_are_a_share_of_all_steps_samples() -> None:
    said = {}
    for phases in (2, 6):
        instability = Instability(spike=20, update_ratio=0.02, nonfinite=0.01, window=50)
        metrics = {n: torch.tensor(v) for n, v in (HEALTHY | {"skipped_samples": 2.0}).items()}
        said[phases] = [instability.judge(metrics, 50, phases) for _ in range(3)][-1]
    assert said == {2: "2.0% of the samples are not finite (limit 1.0%)", 6: ""}
