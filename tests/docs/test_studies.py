"""The studies in results/: runs are the configs'; tables and plots in docs/ are the rows'."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from docs.tables import BLOCK
from docs.tables.figures import WHOLE, cut_runs, differences, evaluations
from sid_lsg.commands.study import TABLE
from sid_lsg.options.renamed import current_name
from sid_lsg.study.options import arguments
from sid_lsg.study.plots import plots
from sid_lsg.study.prompts import located
from sid_lsg.study.results import (
    EVALUATIONS_FILE,
    RUNS_FILE,
    read_results,
    read_rows,
    write_results,
)
from sid_lsg.study.tables import markdown
from tests.helpers.paths import REPOSITORY
from tests.helpers.studies import read, shipped

READ = REPOSITORY / "docs/results"  # their tables and plots
KEPT = sorted(path.parent for path in (REPOSITORY / "results").glob(f"*/{EVALUATIONS_FILE}"))
kept = pytest.mark.parametrize("folder", KEPT, ids=lambda folder: folder.name)


def test_all_studies_are_kept() -> None:
    assert len(KEPT) == len([*(REPOSITORY / "configs/study").glob("*.yaml")]) == 12
    for folder in KEPT:
        assert {path.name for path in folder.iterdir()} == {RUNS_FILE, EVALUATIONS_FILE}


def settings(config: Any) -> dict[str, Any]:
    """Return a fit's options, without those that the study sets and the names of configs."""
    found = config.as_dict()
    trainer = found["trainer"] | {"default_root_dir": None, "max_steps": None}
    return found | {"config": None, "trainer": trainer}


@kept
@pytest.mark.slow
def test_runs_and_evaluations_are_those_of_the_config(folder: Path, tmp_path: Path) -> None:
    of, runs, _ = shipped(REPOSITORY / "configs/study" / f"{folder.name}.yaml")
    planned = {run.name: run for run in runs}
    results = read_results(folder)
    known: dict[str, Any] = {}  # options without the seed -> config
    for found in results.runs:
        run = planned[found["run"]]
        assert found["points"] == [[*label] for label in run.labels]
        assert found["kappas"] == [*run.kappas]
        assert (found["seed"], found["images"]) == (run.seed, run.images)
        options = {current_name(name, value): value for name, value in found["options"].items()}
        assert options.pop("seed_everything") == run.seed
        assert options.pop("trainer.max_steps") == run.iterations
        options = {name: located(value, of.output) for name, value in options.items()}
        key = json.dumps(options)
        if key not in known:
            # Parse them without the base configs: defaults may have moved from there to the code.
            known[key] = settings(read(arguments([], options)))
        assert known[key] == settings(run.config)
    assert of.teacher
    teacher = {(steps, scale) for steps in of.teacher.num_steps for scale in of.teacher.guidance}
    for row in results.evaluations:
        if row["model"] == "teacher":
            assert (row["num_steps"], row["guidance"]) in teacher
            assert row["scored_prompts"] in {run.scored_prompts for run in runs}
        else:
            run = planned[row["model"]]
            assert row["num_steps"] in {run.config.model.num_steps, *of.generator_steps}
            assert row["scored_prompts"] == run.scored_prompts
            assert row["final"] == (row["images_seen"] == run.images)
    write_results(results, tmp_path)  # as `study` writes them
    for name in (RUNS_FILE, EVALUATIONS_FILE):
        assert (tmp_path / name).read_text() == (folder / name).read_text()


@kept
@pytest.mark.slow
def test_tables_and_plots_are_made_from_the_rows(folder: Path) -> None:
    rows = read_rows([str(folder)])
    assert (READ / folder.name / TABLE).read_text() == markdown(rows, "std")
    # Check only which plots exist: rendering is slow and has its own tests.
    shown = {path.stem for path in (READ / folder.name).glob("*.png")}
    assert shown <= plots(rows, "std").keys()


def test_numbers_in_the_findings_are_in_the_tables() -> None:
    files = [READ / "figures.md", *(READ / folder.name / TABLE for folder in KEPT)]
    known = {number for path in files for number in thousandths(path)}
    said = thousandths(READ / "findings.md") | thousandths(READ / "settings.md")
    assert len(said) >= 100
    assert said - known == set()
    law = READ / "law.md"
    tables = "".join(block[0] for block in BLOCK.finditer(law.read_text()))
    assert thousandths(law) - known == thousandths(tables) - known


def thousandths(page: Path | str) -> set[str]:
    """Return a page's numbers with three decimals."""
    text = page if isinstance(page, str) else page.read_text()
    return {*re.findall(r"(?<![\d.])\d+\.\d{3}(?!\d)", text)}


CUT = {  # runs that were stopped early on a GPU -> runs of the same config and seed on a CPU
    "strategies/none-1-seed0": "lsg-1-seed0",
    "limits/t-init-625-seed0": "lsg-1.2-seed0",
    "steps/trained-in-1-step-seed0": "lsg-1.5-seed0",
    "steps/trained-in-1-step-seed1": "lsg-1.5-seed1",
    "kappa/lsg-2-seed2": "lsg-2-seed2",
    "kappa/lsg-3-seed2": "lsg-3-seed2",
    "kappa/lsg-4.5-seed2": "lsg-4.5-seed2",
}


def apart(one: dict[str, str], other: dict[str, str], score: str = "fid") -> float:
    return abs(float(one[f"{score}_clip_2k"]) - float(other[f"{score}_clip_2k"]))


def test_a_stopped_run_on_a_gpu_scores_as_on_a_cpu() -> None:
    for ours, theirs in CUT.items():
        gpu, cpu = cut_runs()[ours], evaluations(f"kappa/{theirs}")
        assert list(gpu) == [3200, 6400, 9600]
        for images, row in gpu.items():
            assert apart(row, cpu[images]) < 1e-4
            assert apart(row, cpu[images], "clip_score") < 1e-5


def test_a_complete_run_on_a_gpu_scores_as_on_a_cpu() -> None:
    found = [each for pair in WHOLE.items() for each in differences(*pair)]
    assert len(found) == 48
    assert max(found) < 0.009


def test_studies_contain_no_absolute_paths() -> None:
    for folder in KEPT:
        for path in (*folder.iterdir(), READ / folder.name / TABLE):
            assert not re.search(r"(^|[\"'\s,])/\w", path.read_text()), path  # an absolute path
