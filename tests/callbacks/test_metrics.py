"""Scores during a run, and the comparison with the teacher at its end."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

from sid_lsg.callbacks import Checkpoint, Health, Metrics
from sid_lsg.cli import main
from sid_lsg.commands.evaluate import evaluate
from sid_lsg.messages.errors import UsageError
from sid_lsg.metrics.evaluator import Evaluator
from sid_lsg.metrics.features import CLIPFeatures
from sid_lsg.metrics.protocol import clip_protocol
from sid_lsg.metrics.statistics import Statistics
from sid_lsg.networks.precision import allow_tf32
from sid_lsg.training.module import SiDLSG
from tests.helpers.callback_runs import (
    BATCH,
    CLIP,
    FID,
    NUM_IMAGES,
    NUM_PICTURED,
    PROMPTS,
    STEPS,
    Files,
    Run,
    fit,
    metrics,
    pixels,
    rows,
)
from tests.helpers.tiny_families import FAMILIES, command


def test_metrics_are_logged_at_iterations(run: Run) -> None:
    table = rows(run)
    assert {"loss_fake", "loss_generator", "images_per_s", FID, CLIP} <= table[0].keys()
    losses = [row for row in table if row["loss_fake"]]
    assert [int(row["step"]) for row in losses] == [2, 4]
    assert [float(row["images_seen"]) for row in losses] == [2 * BATCH, 4 * BATCH]
    scores = [row for row in table if row[FID]]
    assert [int(row["step"]) for row in scores] == [2, 4]
    assert all(row[CLIP] for row in scores)


def test_the_summary_compares_teacher_start_and_end(run: Run, files: Files) -> None:
    summary = json.loads((run.root / "summary.json").read_text())
    assert summary["fit_seconds"] > 0
    assert summary["images_seen"] == STEPS * BATCH
    assert summary["iterations"] == STEPS
    assert (run.root / summary["export"] / "model_index.json").is_file()
    assert summary["teacher_steps"] == 2
    assert summary["teacher_guidance"] == run.module.kappas.eval_real
    counts = [summary[f"{key}evaluations_per_image"] for key in ("teacher_", "initial_", "")]
    assert counts == [4, 1, 1]

    module, teacher = run.module, run.module.teacher
    samplers = {
        "teacher_": lambda prompts, seeds: teacher.sample_reference(prompts, seeds, 2, 1.5),
        "initial_": lambda prompts, seeds: teacher.decode(
            module.generate(prompts, seeds, network=teacher.network)
        ),
        "": lambda prompts, seeds: teacher.decode(module.generate(prompts, seeds)),
    }
    features = CLIPFeatures.from_pretrained(files.clip)
    protocol = clip_protocol(features, fast=True)
    reference = Statistics.load(files.reference)
    evaluator = Evaluator(protocol, features, reference=reference)
    found = {}
    for key, sampler in samplers.items():
        scores = evaluator.of_sampler(sampler, PROMPTS, NUM_IMAGES, NUM_IMAGES, "cpu").values
        found[key] = (summary[key + FID], summary[key + CLIP])
        assert found[key] == pytest.approx((scores["fid"], scores["clip_score"]), rel=1e-3)
    assert len(set(found.values())) == 3


def test_the_last_scores_are_logged_too(run: Run) -> None:
    summary = json.loads((run.root / "summary.json").read_text())
    last = [row for row in rows(run) if row[FID]][-1]
    assert float(last[FID]) == pytest.approx(summary[FID])
    assert float(last[CLIP]) == pytest.approx(summary[CLIP])


def test_the_comparison_shows_three_rows(run: Run) -> None:
    height, width, _ = pixels(run.root / "comparison.png").shape
    side = 2 * 64  # enlarged by an integer factor
    assert height > 3 * side
    assert width > NUM_PICTURED * side


@pytest.mark.slow
def test_the_seconds_of_a_continued_run_include_all_its_training(
    small_sd: str, files: Files, earlier: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = metrics(files)
    load = own.load_state_dict
    monkeypatch.setattr(own, "load_state_dict", lambda state: load(state | {"fit_seconds": 1e4}))
    fit(small_sd, files, earlier, Checkpoint(), own, ckpt_path="last", max_steps=STEPS + 1)
    summary = json.loads((earlier / "summary.json").read_text())
    assert 1e4 < summary["fit_seconds"] < 1.01e4
    saved = torch.load(earlier / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["callbacks"]["Metrics"]["fit_seconds"] == pytest.approx(1e4, rel=0.01)


def test_the_table_states_the_steps_of_the_generator(
    small_sd: str,
    files: Files,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And an EMA that is on the CPU moves once for each row, not for each batch."""
    moved: list[nn.Module] = []
    there: list[nn.Module] = []

    @contextmanager
    def noted(network: nn.Module, device: torch.device) -> Iterator[nn.Module]:
        moved.extend([] if network in there else [network])
        there.append(network)
        yield network
        there.pop()

    monkeypatch.setattr("sid_lsg.training.module.borrowed", noted)
    few = metrics(
        files,
        num_images=2,
        teacher_steps=1,
        num_pictured=1,
        teacher_guidance=1.0,
        num_steps=[2, 3, 1],
        scores={"pickscore": files.clip},
    )
    module = fit(small_sd, files, tmp_path, few, max_steps=1, num_steps=2).module
    assert moved.count(module.ema) == 3
    summary = json.loads((tmp_path / "summary.json").read_text())
    key = "{}evaluations_per_image{}"
    fid = FID.replace(str(NUM_IMAGES), "2")
    names = (("teacher_", ""), ("initial_", ""), ("", "_1_step"), ("", "_3_steps"), ("", ""))
    assert [summary[key.format(*name)] for name in names] == [1, 2, 1, 3, 2]
    assert len({summary[fid + suffix] for _, suffix in names[2:]}) == 3
    assert summary["teacher_guidance"] == 1.0
    table = capsys.readouterr().out
    assert re.search(rf"CLIP +pickscore .*\n.* {summary['teacher_pickscore_own_v1_2']:.3f} ", table)
    shown = ("teacher, 1 step", "untrained, 2 steps", "SiD-LSG, 1 step", "SiD-LSG, 3 steps")
    places = [table.index(f"{name} ") for name in (*shown, "SiD-LSG, 2 steps")]
    assert places == sorted(places)


def test_the_comparison_runs_before_the_networks_leave_their_device(
    small_sd: str, files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning moves them to the CPU before `on_fit_end`. The last checkpoint is saved first."""
    events: list[str] = []

    def noting(owner: Any, name: str, event: str) -> None:
        own = getattr(owner, name)

        def noted(*args: Any, **kwargs: Any) -> Any:
            events.append(event)
            return own(*args, **kwargs)

        monkeypatch.setattr(owner, name, noted)

    noting(Checkpoint, "on_train_end", "saved")
    noting(SiDLSG, "sample_teacher", "compared")
    noting(SiDLSG, "cpu", "moved")
    own = metrics(files, every_n_images=0)
    fit(small_sd, files, tmp_path, own, Checkpoint(), max_steps=1)
    assert list(dict.fromkeys(events)) == ["saved", "compared", "moved"]


@pytest.mark.slow
def test_the_teacher_is_scored_once_for_all_runs(
    small_sd: str, files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first command to need the scores computes them: `evaluate` or a run."""
    monkeypatch.setenv("SID_LSG_CACHE", str(tmp_path / "cache"))
    asked: list[int] = []
    sample = SiDLSG.sample_teacher
    monkeypatch.setattr(
        SiDLSG,
        "sample_teacher",
        lambda self, prompts, *rest: asked.append(len(prompts)) or sample(self, prompts, *rest),  # type: ignore[func-returns-value]
    )

    def run(name: str, **options: Any) -> dict[str, float]:
        asked.clear()
        health = Health(files.clip, BATCH, num_prompts=2, num_seeds=2, teacher_steps=2)
        own = metrics(files, every_n_images=0, **options)
        fit(small_sd, files, tmp_path / name, own, health, Checkpoint(), max_steps=1)
        summary = json.loads((tmp_path / name / "summary.json").read_text())
        return {key: value for key, value in summary.items() if key.startswith("teacher_")}

    first = run("first")
    assert sum(asked) == 4 + NUM_IMAGES + NUM_PICTURED
    assert run("second") == first
    assert sum(asked) == NUM_PICTURED
    again = run("again", reuse_teacher=False)
    assert sum(asked) == NUM_IMAGES + NUM_PICTURED
    del first["teacher_seconds_per_image"], again["teacher_seconds_per_image"]
    assert again == first
    run("other steps", teacher_steps=4)
    assert sum(asked) == NUM_IMAGES + NUM_PICTURED
    evaluate(
        small_sd, files.prompts, sampler="ddim", num_steps=3, guidance=1.5, protocol="fast",
        clip=files.clip, clip_prefix="", reference=files.reference, num_images=NUM_IMAGES,
        accelerator="cpu", output=str(tmp_path / "report"), progress=False,
    )  # fmt: skip
    run("evaluated before", teacher_steps=3)
    assert sum(asked) == NUM_PICTURED


@pytest.mark.parametrize("scale", [0.5, 0, -1, float("nan")])
def test_a_guidance_scale_that_diffusers_ignores_is_rejected(scale: float) -> None:
    with pytest.raises(UsageError, match=r"--metrics\.teacher_guidance must be .*at least 1"):
        Metrics(teacher_guidance=scale)


def test_fewer_scored_images_than_processes_are_rejected(
    small_sd: str, files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sid_lsg.distributed.processes.process", lambda: (0, 5))
    with pytest.raises(UsageError, match=r"--metrics\.num_images: 4 images for 5 processes"):
        fit(small_sd, files, tmp_path, metrics(files, num_images=4))


def test_a_reference_without_clip_is_rejected(files: Files) -> None:
    """Without this error, FID would be missing silently."""
    with pytest.raises(UsageError, match=r"--metrics\.reference.*--metrics\.clip"):
        Metrics(reference=files.reference)


def test_scoring_is_in_full_float32_with_tf32(tmp_path: Path, monkeypatch: Any) -> None:
    """Features of the reference and of the generator; the training's own setting comes back."""
    seen: list[tuple[str, bool]] = []
    embed, image_features = CLIPFeatures.embed, SiDLSG.sample_generator

    def flags() -> bool:
        backends = torch.backends.cuda.matmul, torch.backends.cudnn
        (flag,) = {backend.allow_tf32 for backend in backends}
        return flag

    def noted(name: str, function: Any) -> Any:
        def run(*args: Any, **named: Any) -> Any:
            seen.append((name, flags()))
            return function(*args, **named)

        return run

    monkeypatch.setattr(CLIPFeatures, "embed", noted("features", embed))
    monkeypatch.setattr(SiDLSG, "sample_generator", noted("sampling", image_features))
    images = tmp_path / "images"
    images.mkdir()
    for number in range(3):
        Image.new("RGB", (32, 32), (80 * number, 9, 40)).save(images / f"{number}.png")
    options = {
        "trainer__default_root_dir": tmp_path / "run", "trainer__max_steps": 1,
        "model__compute__tf32": "true", "metrics__clip": "package:demo/fashion/clip",
        "metrics__reference": images, "metrics__num_images": 4, "metrics__teacher_steps": 1,
        "metrics__reuse_teacher": "false",
    }  # fmt: skip
    try:
        main(command(FAMILIES["sd3"], tmp_path, **options))
        assert flags()
    finally:
        allow_tf32(False)
    assert seen[0] == ("features", False)  # the reference, before the training
    assert {*seen} == {("features", False), ("sampling", True)}
