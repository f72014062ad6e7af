"""Failures planted in the distillation of the embedded teacher, and the actions of Health."""

import csv
import functools
import math
import random
import re
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from torch import Tensor

from sid_lsg.callbacks import Checkpoint, Export
from sid_lsg.callbacks.health import Health
from sid_lsg.callbacks.instability import BASELINE, RECENT, Instability
from sid_lsg.data.prompts import PromptDataModule
from sid_lsg.messages.errors import TrainingStopped, UsageError
from sid_lsg.metrics.probe import below, choose_prompts, measure, probe
from sid_lsg.options.guidance import Guidance
from sid_lsg.options.training import EMA
from sid_lsg.training.module import SiDLSG

CLIP = "package:demo/fashion/clip"
BATCH = 4
KINDS = ("collapse", "misalignment", "instability")


class NoNoise(SiDLSG):
    """Generate the same image of a prompt for every noise."""

    def generate(self, prompts: Sequence[str], seeds: Sequence[int], *rest: Any) -> Tensor:
        return super().generate(prompts, [0] * len(seeds), *rest)


class OneImage(SiDLSG):
    """Ignore the prompt."""

    def generate(self, prompts: Sequence[str], seeds: Sequence[int], *rest: Any) -> Tensor:
        return super().generate(["a pink sandal on a gray background"] * len(prompts), seeds, *rest)


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


def health(**options: Any) -> Health:
    """Return a Health callback with a small probe every 3 iterations."""
    defaults = {
        "clip": CLIP,
        "every_n_images": 3 * BATCH,
        "num_prompts": 16,
        "num_seeds": 3,
        "batch_size": 48,
        "teacher_steps": 8,
    }
    return Health(**defaults | options)


def fit(
    root: Path,
    *callbacks: L.Callback,
    module: type[SiDLSG] = SiDLSG,
    lr: float = 5e-5,
    max_steps: int = 3,
    teacher: str = "package:demo/fashion",
    log_every_n_steps: int = 1,
    ckpt_path: str | None = None,
) -> SiDLSG:
    """Distil the demo's teacher for `max_steps` iterations of 4 images."""

    def adam(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, lr=lr, betas=(0.0, 0.999))

    trained = module(
        teacher,
        guidance=Guidance("none"),
        optimizer_fake=adam,
        optimizer_generator=adam,
        ema=EMA(halflife_images=1000),
    )
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=max_steps,
        max_epochs=-1,
        default_root_dir=root,
        logger=L.pytorch.loggers.CSVLogger(root, name="", version=""),
        log_every_n_steps=log_every_n_steps,
        callbacks=list(callbacks),
        use_distributed_sampler=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        enable_checkpointing=any(isinstance(c, Checkpoint) for c in callbacks),
    )
    data = PromptDataModule("package:demo/fashion/prompts.txt", batch_size=BATCH, num_workers=0)
    trainer.fit(trained, data, ckpt_path=ckpt_path, weights_only=True)
    return trained


def warned(run: Callable[[], SiDLSG]) -> list[str]:
    """Train and return the warnings of Health."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run()
    return [text for w in caught if (text := str(w.message)).startswith(KINDS)]


def rows(root: Path) -> list[dict[str, str]]:
    with (root / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def step_of(path: Path) -> int:
    return int(torch.load(path, weights_only=True)["global_step"])


# ---------------------------------------------------------------------- detection


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


def test_measures_equal_a_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    images, texts = (torch.randn(n, 5, generator=generator).double() for n in (6, 3))

    def cosine(a: Tensor, b: Tensor) -> float:
        return float(a @ b / (a.norm() * b.norm()))

    pairs = [(i, j) for i in range(6) for j in range(6) if i != j]
    within = [1 - cosine(images[i], images[j]) for i, j in pairs if i // 2 == j // 2]
    across = [1 - cosine(images[i], images[j]) for i, j in pairs if i // 2 != j // 2]
    own = [cosine(images[i], texts[i // 2]) for i in range(6)]
    right = [own[i] == max(cosine(images[i], text) for text in texts) for i in range(6)]
    expected = [sum(x) / len(x) for x in (within, across, own, right)]
    assert list(measure(images, texts)) == pytest.approx(expected)


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_a_probe_gives_every_image_a_different_seed(batch_size: int) -> None:
    seen: list[tuple[str, int]] = []

    def sampler(prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        assert len(prompts) == len(seeds) <= batch_size
        seen.extend(zip(prompts, seeds, strict=True))
        return torch.eye(9)[list(seeds)]

    features = SimpleNamespace(images=lambda images: images, texts=lambda _: torch.eye(9)[::3])
    found = probe(sampler, features, ["a", "b", "c"], 3, batch_size)  # type: ignore[arg-type]
    assert seen == [(prompt, seed) for seed, prompt in enumerate("aaabbbccc")]
    # with all similarities 0, the first text is the largest
    assert found == pytest.approx((1, 1, 1 / 3, 5 / 9))


@pytest.mark.parametrize(("world", "batch_size"), [(2, 2), (2, 4), (3, 9)])
def test_processes_share_a_probe(
    monkeypatch: pytest.MonkeyPatch, world: int, batch_size: int
) -> None:
    """All of them sample equally often, as a sharded network needs, and find the same."""
    features = SimpleNamespace(images=lambda images: images, texts=lambda _: torch.eye(9)[::3])
    calls: list[int] = []

    def sampler(prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        calls[-1] += 1
        return torch.eye(9)[list(seeds)]

    made: list[Any] = []
    where = "sid_lsg.metrics.probe"
    monkeypatch.setattr("sid_lsg.distributed.processes.process", lambda: (0, world))
    monkeypatch.setattr(f"{where}.gather", lambda own: made.extend(own) or made)
    monkeypatch.setattr(f"{where}.measure", lambda *found: found)
    for rank in range(world):
        calls.append(0)
        monkeypatch.setattr(f"{where}.process", lambda rank=rank: (rank, world))
        last: Any = probe(sampler, features, ["a", "b", "c"], 3, batch_size)  # type: ignore[arg-type]
    values = measure(*last)  # of what all processes have gathered
    assert values == pytest.approx((1, 1, 1 / 3, 5 / 9))
    assert len({*calls}) == 1
    assert len(made) * batch_size >= 9


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


def test_a_nan_ratio_is_below_any_limit() -> None:
    ratios = {"a": 0.5, "b": math.nan, "c": 0.2}
    assert below(0.25, ratios) == (
        "b is nan times the teacher's (limit 0.25); c is 0.20 times the teacher's (limit 0.25)"
    )
    assert below(0.2, {"c": 0.2}) == ""


def test_prompts_are_distinct_and_evenly_spread() -> None:
    assert choose_prompts(["a", "b", "a", "a", "c"], 3) == ["a", "b", "c"]
    assert choose_prompts(["a", "a"], 3) == ["a"]
    assert choose_prompts([str(i) for i in range(1000)], 4) == ["0", "250", "500", "750"]


# ---------------------------------------------------------------------- logged values

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


# ---------------------------------------------------------------------- actions


class Shaken(SiDLSG):
    """Make far too large updates in the iterations `shaken`, counted from 1."""

    shaken: tuple[int, ...] = (4, 5, 6)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        for group in optimizer.param_groups:
            group["lr"] = 1.0 if self.trainer.global_step + 1 in self.shaken else 1e-5
        super().on_before_optimizer_step(optimizer)


class AlwaysShaken(Shaken):
    shaken = tuple(range(1, 100))


@pytest.fixture
def tiny(small_sd: str, tmp_path: Path) -> Callable[..., SiDLSG]:
    """Return a function that trains the tiny pipeline and logs every second iteration."""

    def run(*callbacks: L.Callback, **options: Any) -> SiDLSG:
        options = {"module": Shaken, "max_steps": 8, "log_every_n_steps": 2} | options
        return fit(tmp_path, *callbacks, teacher=small_sd, **options)

    return run


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
def test_stop_saves_the_current_state_and_ends(tiny: Callable[..., SiDLSG], tmp_path: Path) -> None:
    watch = Health(instability_action="stop")
    with pytest.raises(TrainingStopped) as stopped:
        tiny(watch, Checkpoint(every_n_steps=3), Export())
    folder = tmp_path / "checkpoints"
    assert str(stopped.value).startswith("instability at iteration 4, 16 images seen: update_rat")
    assert str(stopped.value).endswith(f"the current state is {folder / '0000004.ckpt'}.")
    assert (step_of(folder / "last.ckpt"), step_of(folder / "0000004.ckpt")) == (4, 4)
    assert not (tmp_path / "generator").exists()
    # the row of the failure is logged
    assert [int(row["step"]) for row in rows(tmp_path)] == [2, 4]


@pytest.mark.slow
@pytest.mark.parametrize("keep", [0, 1])
def test_keep_good_returns_to_the_last_good_checkpoint(
    tiny: Callable[..., SiDLSG], tmp_path: Path, keep: int
) -> None:
    """Retention deletes iteration 2's own file at iteration 3, before the failure is seen."""
    watch = Health(instability_action="keep_good")
    with pytest.raises(TrainingStopped) as stopped:
        tiny(watch, Checkpoint(every_n_steps=1, keep=keep), Export())
    folder = tmp_path / "checkpoints"
    assert "at iteration 4, 16 images seen" in str(stopped.value)
    assert str(stopped.value).endswith(f"the last good checkpoint, {folder / 'good.ckpt'}.")
    assert (folder / "last.ckpt").readlink() == Path("good.ckpt")
    assert step_of(folder / "last.ckpt") == 2
    assert not (folder / "0000004.ckpt").exists()
    assert not (tmp_path / "generator").exists()
    # A continued run may fail again before it saves anything, or end without a failure.
    again = (Health(instability_action="keep_good"), Checkpoint(every_n_steps=5, keep=keep))
    with pytest.raises(TrainingStopped, match="at iteration 4, .* the last good checkpoint"):
        tiny(*again, ckpt_path="last")
    assert step_of(folder / "last.ckpt") == 2
    tiny(Health(), Checkpoint(every_n_steps=5, keep=keep), module=SiDLSG, ckpt_path="last")
    assert (step_of(folder / "last.ckpt"), step_of(folder / "good.ckpt")) == (8, 8)


@pytest.mark.slow
def test_a_good_checkpoint_of_a_later_iteration_is_not_used(
    tiny: Callable[..., SiDLSG], tmp_path: Path
) -> None:
    """A run that continues from an earlier checkpoint ignores the later ones."""
    tiny(Health(), Checkpoint(every_n_steps=1, keep=-1), module=SiDLSG)
    folder = tmp_path / "checkpoints"
    assert step_of(folder / "good.ckpt") == 8
    again = (Health(instability_action="keep_good"), Checkpoint(every_n_steps=5, keep=-1))
    with pytest.raises(TrainingStopped, match=r"at iteration 4.*no earlier checkpoint that"):
        tiny(*again, ckpt_path=str(folder / "0000002.ckpt"))
    assert (folder / "last.ckpt").readlink() != Path("good.ckpt")


@pytest.mark.slow
def test_good_is_the_judged_state(tiny: Callable[..., SiDLSG], tmp_path: Path) -> None:
    good = tmp_path / "checkpoints/good.ckpt"
    watch = Health(every_n_images=BATCH)  # judges nothing here: it has no CLIP model
    tiny(watch, Checkpoint(every_n_steps=2), module=SiDLSG, max_steps=5)
    assert (step_of(good), step_of(good.with_name("last.ckpt"))) == (4, 5)
    tiny(Health(), Checkpoint(every_n_steps=9), module=SiDLSG, max_steps=6)  # saved at the end
    assert step_of(good) == 6
    assert not list(tmp_path.rglob("*.tmp"))


def test_good_works_without_hard_links(
    tiny: Callable[..., SiDLSG], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(*_: Any) -> None:
        raise OSError("Operation not permitted")

    monkeypatch.setattr("os.link", link)
    tiny(Health(), Checkpoint(every_n_steps=2), module=SiDLSG, max_steps=2)
    assert step_of(tmp_path / "checkpoints/good.ckpt") == 2


@pytest.mark.slow
def test_a_continued_run_restores_its_baseline(
    tiny: Callable[..., SiDLSG], small_sd: str, tmp_path: Path
) -> None:
    """Without a baseline, any first row would count as healthy and become `good.ckpt`."""
    watch = Health()
    past = {"loss_fake": [1.0, math.inf]}
    watch.load_state_dict({"failed": {"instability": 2}, "past": past})
    kept = watch.state_dict()
    assert kept["failed"] == {"collapse": 0, "misalignment": 0, "instability": 2}
    assert kept["past"]["loss_fake"] == past["loss_fake"]
    tiny(Health(), Checkpoint(every_n_steps=5), max_steps=10)
    saved = torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)
    (state,) = [v for k, v in saved["callbacks"].items() if k.startswith("Health")]
    assert len(state["past"]["loss_fake"]) > 0

    for guidance, expected in ((Guidance("none"), state["past"]), (Guidance(scale=2.0), {})):
        watch = Health()
        watch.setup(L.Trainer(logger=False), SiDLSG(small_sd, guidance=guidance), "fit")
        watch.load_state_dict(state)
        found = watch.state_dict()["past"]
        assert {name: values for name, values in found.items() if values} == expected


def test_keep_good_without_a_good_checkpoint_says_so(
    tiny: Callable[..., SiDLSG], tmp_path: Path
) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/good.ckpt").touch()  # of another run
    watch = Health(instability_action="keep_good")
    with pytest.raises(TrainingStopped, match="there is no earlier checkpoint"):
        tiny(watch, Checkpoint(every_n_steps=9), module=AlwaysShaken)
    assert not (tmp_path / "checkpoints/last.ckpt").exists()


@pytest.mark.slow
def test_stop_and_keep_good_together_save_nothing_bad(tmp_path: Path) -> None:
    watch = health(collapse_action="stop", misalignment_action="keep_good")
    with pytest.raises(TrainingStopped, match="(?s)collapse.*misalignment.*no earlier checkpoint"):
        # The probe comes before the last iteration, which is always saved first.
        fit(tmp_path, watch, Checkpoint(every_n_steps=9), module=OneImage, max_steps=5)
    assert not list(tmp_path.rglob("*.ckpt"))


@pytest.mark.slow
def test_a_failing_probe_is_not_good(tmp_path: Path) -> None:
    fit(tmp_path, health(), Checkpoint(every_n_steps=1, keep=0), module=NoNoise)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["last.ckpt"]


# ---------------------------------------------------------------------- unchanged training


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


@pytest.mark.slow
def test_actions_that_save_need_checkpoints(tmp_path: Path) -> None:
    for action in ("stop", "keep_good"):
        with pytest.raises(UsageError, match=r"--health.instability_action: .* needs checkpoints"):
            fit(tmp_path, Health(instability_action=action))  # type: ignore[arg-type]


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


def test_skipped_samples_are_a_share_of_all_steps_samples() -> None:
    said = {}
    for phases in (2, 6):
        instability = Instability(spike=20, update_ratio=0.02, nonfinite=0.01, window=50)
        metrics = {n: torch.tensor(v) for n, v in (HEALTHY | {"skipped_samples": 2.0}).items()}
        said[phases] = [instability.judge(metrics, 50, phases) for _ in range(3)][-1]
    assert said == {2: "2.0% of the samples are not finite (limit 1.0%)", 6: ""}
