"""The baseline: golden numbers, and the calls that make it slower."""

import gc
from typing import Any

import pytest
import torch
from torch import nn

from sid_lsg.benchmark.baseline import Baseline, Noise
from sid_lsg.method.ema import ema_beta
from sid_lsg.method.guidance import Kappas
from sid_lsg.teachers import families
from sid_lsg.teachers.stable_diffusion import StableDiffusion
from tests.helpers.golden import GRADIENT, LOSS, Golden, check_fingerprint, error
from tests.helpers.paths import GOLDEN, GOLDEN_FLOW

# Cases with K = 1, since the baseline has no K-step sampler.
CASES = ["case_eps_k2_2_2_a1", "case_eps_k1_1_4.5_a1", "case_eps_k2_2_2_a1_rounds2"]


class Recorder(Baseline):
    """A baseline that records the gradients passed to its optimizers."""

    gradients: list[list[torch.Tensor]]

    def _step(self, network: nn.Module) -> None:
        self.gradients.append([p.grad.clone() for p in network.parameters()])
        super()._step(network)


@pytest.fixture(scope="module")
def golden() -> Golden:
    return Golden(GOLDEN)


def make(golden: Golden, v: bool = False, **options: Any) -> Recorder:
    scheduler = str(golden.path("tiny_sd_v").absolute() / "scheduler")
    subfolders = {"scheduler": scheduler} if v else None
    teacher = StableDiffusion.from_pretrained(str(golden.path("tiny_sd")), subfolders=subfolders)
    baseline = Recorder(teacher, **options)
    baseline.gradients = []
    return baseline


@pytest.mark.parametrize("case", [*CASES, "case_v_k2_2_2_a1_mb1"])
@pytest.mark.slow
def test_golden_numbers(golden: Golden, case: str) -> None:
    entry, expected = golden.entry(case), golden.tensors(case)
    baseline = make(
        golden,
        entry["prediction_type"] == "v_prediction",
        kappas=Kappas(*(entry[f"kappa{i}"] for i in (1, 2, 3, 4))),
        alpha=entry["alpha"],
        micro_batch_size=entry["micro_batch"],
        lr=0.0,
    )
    baseline.fake_score.load_state_dict(golden.tensors(entry.get("fake_weights", "weights_fake")))
    baseline.generator.load_state_dict(golden.tensors(entry.get("g_weights", "weights_g")))
    recorded, prompts = golden.tensors("inputs"), golden.entry("inputs")["prompts"]
    losses = []
    for name, evaluate in (
        ("phase1", baseline.fake_score_phase),
        ("phase2", baseline.generator_phase),
    ):
        noise = Noise(*(recorded[f"{name}.{kind}"] for kind in ("z", "noise", "t")))
        losses.append(evaluate(prompts, noise))
    for (name, loss), gradients in zip(
        zip(("phase1", "phase2"), losses, strict=True), baseline.gradients, strict=True
    ):
        # The generator's loss is a difference of terms about ten times as large.
        assert loss == pytest.approx(entry[f"{name}_loss_total"], rel=LOSS * 100)
        check_fingerprint(gradients, expected[f"{name}.grad_fingerprint"], GRADIENT)
        for parameter, gradient in zip(golden.names, gradients, strict=True):
            if (full := expected.get(f"{name}.grad.{parameter}")) is not None:
                assert error(gradient, full) < GRADIENT, parameter


def test_call_counts(golden: Golden, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight text encoder calls, 2B + 2 scheduler calls, one garbage collection."""
    baseline = make(golden, kappas=Kappas(2.0, 2.0, 2.0, 2.0))
    calls = {"text": 0, "step": 0, "collect": 0}

    def counted(name: str, function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            calls[name] += 1
            return function(*args, **kwargs)

        return call

    text_encoder = baseline.encode.__self__.text.text_encoder  # type: ignore[attr-defined]
    text_encoder.register_forward_hook(counted("text", lambda *_: None))
    monkeypatch.setattr(baseline.scheduler, "step", counted("step", baseline.scheduler.step))
    monkeypatch.setattr(gc, "collect", counted("collect", gc.collect))
    losses = baseline.iteration(["a cat"] * 3, ["a dog"] * 3)
    assert all(torch.isfinite(torch.tensor(losses)))
    assert calls == {"text": 8, "step": 2 * 3 + 2, "collect": 1}
    baseline.collect = False
    baseline.iteration(["a cat"] * 3, ["a dog"] * 3)
    assert calls["collect"] == 1


def test_ema(golden: Golden) -> None:
    """The EMA starts as a copy and moves toward the generator."""
    baseline = make(golden, kappas=Kappas(1.0, 1.0, 1.0, 1.0), lr=1e-3)
    baseline.iteration(["a cat"] * 2, ["a dog"] * 2)
    first = [p.clone() for p in baseline.generator.parameters()]
    assert all(map(torch.equal, baseline.ema.parameters(), first))
    changed = [p.clone() for p in baseline.ema.parameters()]
    baseline.iteration(["a cat"] * 2, ["a dog"] * 2)
    beta = ema_beta(2, 2, 50_000.0, 0.05)
    for average, old, new in zip(
        baseline.ema.parameters(), changed, baseline.generator.parameters(), strict=True
    ):
        torch.testing.assert_close(average, beta * old + (1 - beta) * new)


def test_two_scales_are_rejected(golden: Golden) -> None:
    with pytest.raises(ValueError, match="kappa_2 and kappa_3"):
        make(golden, kappas=Kappas(1.0, 1.0, 2.0, 1.0))


@pytest.mark.parametrize(("family", "message"), [("sdxl", "empty prompt"), ("sd3", "timesteps")])
def test_teachers_that_the_official_code_cannot_train_are_rejected(
    family: str, message: str
) -> None:
    teacher = families.load(str(GOLDEN_FLOW / "pipelines" / f"tiny_{family}"))
    with pytest.raises(ValueError, match=message):
        Baseline(teacher, Kappas(2.0, 2.0, 2.0, 2.0))
