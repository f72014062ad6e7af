"""Failures planted in the distillation of the embedded teacher, which Health detects."""

import functools
import math
import random
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from torch import Tensor

from sid_lsg.callbacks import Checkpoint
from sid_lsg.callbacks.health import Health
from sid_lsg.callbacks.instability import RECENT
from sid_lsg.messages.errors import UsageError
from sid_lsg.metrics.probe import choose_prompts, probe
from sid_lsg.training.module import SiDLSG
from tests.helpers.health_runs import (
    BATCH,
    CLIP,
    NoNoise,
    OneImage,
    Shaken,
    fit,
    health,
    rows,
    warned,
)


class Shuffled(SiDLSG):
    """Generate images of other prompts than the given ones."""

    def generate(self, prompts: Sequence[str], seeds: Sequence[int], *rest: Any) -> Tensor:
        prompts_of = self.trainer.datamodule.heldout_prompts
        others = dict(zip(prompts_of, [*prompts_of[7:], *prompts_of[:7]], strict=True))
        return super().generate([others[prompt] for prompt in prompts], seeds, *rest)


class Bad(SiDLSG):
    """Make half of the samples NaN from iteration `since` on."""

    since = 0

    def phase_inputs(self, *arguments: Any) -> Any:
        inputs = super().phase_inputs(*arguments)
        if self.trainer.global_step >= self.since:
            inputs.draws.eps[::2] = math.nan
        return inputs


@pytest.mark.slow
def test_a_healthy_run_is_logged_without_warnings(tmp_path: Path) -> None:
    assert warned(lambda: fit(tmp_path, health())) == []
    (seen,) = [row for row in rows(tmp_path) if row["health/retrieval"]]
    assert (int(seen["step"]), float(seen["images_seen"])) == (3, 3 * BATCH)
    assert float(seen["health/diversity_within"]) > 0.5
    assert float(seen["health/diversity_across"]) == pytest.approx(1, abs=0.1)
    assert float(seen["health/clip_ratio"]) == pytest.approx(1, abs=0.2)
    assert 0.75 < float(seen["health/retrieval"]) <= 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "kind", "seen"),
    [
        (NoNoise, "collapse", "diversity within prompts is 0.00 times the teacher's (limit 0.25)"),
        (Shuffled, "misalignment", "retrieval accuracy is 0.0"),
    ],
)
def test_a_planted_failure_raises_only_its_own_warning(
    tmp_path: Path, module: type[SiDLSG], kind: str, seen: str
) -> None:
    (message,) = warned(lambda: fit(tmp_path, health(), module=module))
    assert message.startswith(f"{kind} at iteration 3, 12 images seen: ")
    assert seen in message
    assert "--model.guidance.scale" in message


@pytest.mark.slow
def test_a_generator_that_ignores_its_prompt_is_collapsed_and_misaligned(tmp_path: Path) -> None:
    first, second = warned(lambda: fit(tmp_path, health(), module=OneImage))
    assert "collapse" in first
    assert "across prompts is 0.0" in first
    assert "misalignment" in second


@pytest.mark.slow
def test_a_learning_rate_1000_times_too_large_is_detected_at_once(tmp_path: Path) -> None:
    (message,) = warned(lambda: fit(tmp_path, Health(), lr=5e-2, max_steps=1))
    assert message.startswith("instability at iteration 1, 4 images seen: update_ratio_fake is ")
    assert "update_ratio_generator is " in message
    assert "(limit 0.02)" in message
    assert "init_args.lr" in message


@pytest.mark.slow
def test_a_continued_run_does_not_sample_the_teacher_again(
    tiny: Callable[..., SiDLSG], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []
    sample = SiDLSG.sample_teacher

    def counted(module: SiDLSG, prompts: Any, seeds: Any, num_steps: int, guidance: float) -> Any:
        steps.append(num_steps)
        return sample(module, prompts, seeds, num_steps, guidance)

    monkeypatch.setattr(SiDLSG, "sample_teacher", counted)
    monkeypatch.setenv("SID_LSG_CACHE", str(tmp_path / "cache"))  # no other test has sampled it
    small = {"num_prompts": 2, "num_seeds": 2, "batch_size": 4}

    def run(max_steps: int, teacher_steps: int, start: int | None = None) -> list[int]:
        steps.clear()
        path = str(tmp_path / f"checkpoints/{start:07d}.ckpt") if start else None
        watch = health(**small, teacher_steps=teacher_steps)
        saver = Checkpoint(every_n_steps=4, keep=-1)
        tiny(watch, saver, module=SiDLSG, max_steps=max_steps, ckpt_path=path)
        return [*steps]

    assert run(6, 1) == [1]  # once for two probes
    assert run(9, 1, start=6) == []
    assert run(9, 2, start=6) == [2]  # of other settings


@pytest.mark.slow
def test_bfloat16_changes_no_verdict(tmp_path: Path) -> None:
    """A run in bf16-mixed probes in bfloat16. The limits are 0.25 and 0.75."""
    module = fit(tmp_path, max_steps=1)
    watch = health()
    prompts = choose_prompts(module.trainer.datamodule.heldout_prompts, watch.num_prompts)  # type: ignore[attr-defined]

    def teacher(prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        return module.sample_teacher(prompts, seeds, watch.teacher_steps, 1.0)

    found = []
    for half in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            reference, own = (
                probe(sampler, watch.features, prompts, watch.num_seeds, watch.batch_size)  # type: ignore[arg-type]
                for sampler in (teacher, module.sample_generator)
            )
        found.append(torch.tensor(own.relative_to(reference)))
    print(found)
    assert float((found[1] - found[0]).abs().max()) < 0.05


def test_nonfinite_samples_are_detected(tiny: Callable[..., SiDLSG]) -> None:
    (message,) = warned(lambda: tiny(Health(), module=Bad, max_steps=RECENT, log_every_n_steps=1))
    assert f"at iteration {RECENT}, " in message
    assert "50.0% of the samples are not finite (limit 1.0%)" in message


@pytest.mark.slow
def test_a_warning_is_repeated_only_after_a_recovery(
    tiny: Callable[..., SiDLSG], monkeypatch: pytest.MonkeyPatch
) -> None:
    def iterations(max_steps: int, **options: Any) -> list[int]:
        run = functools.partial(tiny, Health(**options), log_every_n_steps=1, max_steps=max_steps)
        return [int(re.findall("iteration (\\d+)", message)[0]) for message in warned(run)]

    monkeypatch.setattr(Shaken, "shaken", (1, 2, 3, 5, 6))
    assert iterations(8) == [1, 5]
    monkeypatch.setattr(Shaken, "shaken", ())
    assert iterations(12, update_ratio=1e-12) == [1, 11]  # or after ten more


@pytest.mark.slow
def test_health_does_not_change_the_training(tiny: Callable[..., SiDLSG]) -> None:
    class Watched(Health):
        def on_iterated(self, *arguments: Any) -> None:
            torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()  # noqa: NPY002
            python_state = random.getstate()
            super().on_iterated(*arguments)
            assert torch.equal(torch_state, torch.get_rng_state())
            assert str(numpy_state) == str(np.random.get_state())  # noqa: NPY002
            assert python_state == random.getstate()

    options = {"num_prompts": 4, "num_seeds": 2, "teacher_steps": 2, "every_n_images": BATCH}
    watched = tiny(Watched(CLIP, **options), module=SiDLSG, max_steps=3)  # type: ignore[arg-type]
    alone = tiny(module=SiDLSG, max_steps=3, log_every_n_steps=0)
    for name, value in watched.state_dict().items():
        assert torch.equal(value, alone.state_dict()[name]), name


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("every_n_images", -1),
        ("num_prompts", 1),
        ("num_seeds", 1),
        ("batch_size", 0),
        ("teacher_steps", 0),
        ("teacher_guidance", math.nan),
        ("teacher_guidance", 0.5),
        ("collapse", -0.1),
        ("collapse", 1.1),
        ("misalignment", math.nan),
        ("spike", 1.0),
        ("spike", math.inf),
        ("update_ratio", 0.0),
        ("nonfinite", 2.0),
        ("window", 4),
        ("collapse_action", "ignore"),
        ("clip", "./nowhere"),
    ],
)
def test_values_out_of_range_are_rejected_by_name(option: str, value: Any) -> None:
    with pytest.raises(UsageError, match=rf"--health\.{option}\b"):
        Health(**{option: value})


def test_a_single_prompt_is_rejected(tmp_path: Path) -> None:
    class Single(L.Callback):
        def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            trainer.datamodule._heldout_prompts = ["a red coat"] * 3  # type: ignore[attr-defined]

    with pytest.raises(UsageError, match=r"--health\.clip needs two distinct prompts"):
        fit(tmp_path, Single(), health())
