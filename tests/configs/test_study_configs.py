"""The shipped studies: each can be planned and run, and its header states its cost."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import yaml

from sid_lsg.cli import main
from sid_lsg.demo.dataset import CAPTIONS, COLOURS, GARMENTS
from sid_lsg.method.choices import Noise, Objective, StepTraining, Weighting
from sid_lsg.options.guidance import Preset
from sid_lsg.study.options import PromptFile
from sid_lsg.study.prompts import write_prompts
from sid_lsg.study.tasks import fit
from tests.helpers.images import photographs
from tests.helpers.paths import REPOSITORY
from tests.helpers.studies import shipped

STUDIES = sorted((REPOSITORY / "configs/study").glob("*.yaml"))
RATE = 400  # evaluations per second on 2 CPU cores with scoring, as in results/kappa


@pytest.mark.slow
@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_headers_state_the_cost(path: Path) -> None:
    _, runs, _ = shipped(path)
    text = path.read_text()
    assert f"--config configs/study/{path.name} --output runs/{path.stem}" in text
    stated = re.search(
        r"# Cost: (\d+) fits, ([\d,]+) images, ([\d.]+) M network evaluations, at 400 a "
        r"second on 2 CPU cores\n# \(AVX2\) ([\d.]+) h;",
        text,
    )
    assert stated
    evaluations = sum(run.evaluations for run in runs)
    assert int(stated[1]) == len(runs)
    assert int(stated[2].replace(",", "")) == sum(run.images for run in runs)
    assert stated[3] == f"{evaluations / 1e6:.1f}"
    assert stated[4] == f"{evaluations / RATE / 3600:.1f}"


@pytest.mark.slow
@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_a_point_of_each_series_runs(
    path: Path, small_sd: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run the study's own commands with small options."""
    of, runs, files = shipped(path)
    of = replace(of, output=tmp_path)
    write_prompts(files, tmp_path)
    small = {
        "model.teacher": small_sd, "model.resolution": 64, "data.batch_size": 2,
        "data.num_workers": 0, "trainer.max_steps": 2, "trainer.log_every_n_steps": 1,
        "metrics.num_images": 4, "metrics.every_n_images": 0, "metrics.num_pictured": 1,
    }  # fmt: skip
    last = {run.labels[-1][0]: run for run in runs if run.seed == 0}
    for run in last.values():
        if run.config.data.real_images:
            small["data.real_images"] = photographs(tmp_path)
        main([*fit(of, run).command, *(f"--{name}={value}" for name, value in small.items())])
        summary = json.loads((tmp_path / "runs" / run.name / "summary.json").read_text())
        assert summary["images_seen"] == 4
        assert "fid_clip_4" in summary


@pytest.mark.slow
def test_the_studies_vary_what_they_are_named_after() -> None:
    found = {path.stem: shipped(path) for path in STUDIES}
    studies = "kappa", "strategies", "steps", "prompts", "settings", "limits", "real_data", "long"
    few = "few_steps", "few_steps_flow"
    assert set(found) == {*studies, *few, "objective", "law"}
    assert all(run.images == 6400 * 64 for run in found["law"][1])
    assert all(run.config.model.ema.snapshot_images for run in found["law"][1])
    assert {run.config.model.objective for run in found["objective"][1]} == {"dmd"}
    with_images = [run for run in found["real_data"][1] if run.config.data.real_images]
    assert len(with_images) == 9
    assert all(
        (run in with_images) == bool(run.config.model.real_data) for run in found["real_data"][1]
    )
    kappas = [run.kappas for run in found["kappa"][1] if run.seed == 0]
    assert kappas == [(k,) * 4 for k in (1, 1.2, 1.5, 2, 3, 4.5)]
    four = {run.labels[0]: run.kappas for run in found["strategies"][1] if run.seed == 0}
    assert four["none", "1"] == (1, 1, 1, 1)
    for (series, point), scales in four.items():
        assert scales[3] == (1 if series == "short" else float(point))
        assert scales[:3] == {
            "none": (1,) * 3, "long": (1,) * 3, "kappa_1 = 1": (1, *scales[2:]),
        }.get(series, (float(point),) * 3)  # fmt: skip
    assert {run.config.model.num_steps for run in found["steps"][1]} == {1, 2, 4}
    for run in found["settings"][1]:
        assert run.iterations * run.config.data.batch_size == run.images == 12_800
        rates = [run.config.model[f"optimizer_{n}"].init_args.lr for n in ("fake", "generator")]
        assert rates[0] == rates[1]
    for name in ("settings", "limits", *few):
        shared = [run for run in found[name][1] if len(run.labels) > 1]
        assert {len(run.labels) for run in shared} == {6 if name in few else 5}
    for name in few:
        methods = [run.config.model for run in found[name][1]]
        assert {method.num_steps for method in methods} == {1, 2, 4}
        for option, values in {
            "step_training": StepTraining, "noise": Noise, "objective": Objective,
            "weighting": Weighting,
        }.items():  # fmt: skip
            assert {method[option] for method in methods} >= {*get_args(values)} - {"sid_legacy"}
        assert {method.guidance.preset for method in methods} == {*get_args(Preset)}
        assert {method.fake_steps for method in methods} == {1, 2, 5}


def test_the_unseen_pairs_are_excluded_from_training() -> None:
    config = yaml.safe_load((REPOSITORY / "configs/study/prompts.yaml").read_text())
    files = {k: PromptFile(**f).make(CAPTIONS) for k, f in config["prompt_files"].items()}
    assert len(files["unseen"]) == 80
    assert sorted(files["unseen"] + files["seen"]) == sorted(CAPTIONS)
    for words in (COLOURS, GARMENTS):  # each word is trained on in other pairs
        assert all(any(f" {word} " in prompt for prompt in files["seen"]) for word in words)
        assert all(any(f" {word} " in prompt for prompt in files["unseen"]) for word in words)
    assert len(files["a_tenth"]) == 32
