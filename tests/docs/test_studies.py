"""The studies in docs/: rows equal the runs' results; tables and plots are made from the rows."""

import re
from dataclasses import replace
from pathlib import Path
from runpy import run_path

import pytest
from matplotlib.figure import Figure

from sid_lsg.commands.study import TABLE
from sid_lsg.study.plots import draw
from sid_lsg.study.results import RESULTS, collect, read_results, write_results
from sid_lsg.study.tables import markdown
from tests.helpers.paths import REPOSITORY
from tests.helpers.studies import shipped

SCRIPT = run_path(str(REPOSITORY / "docs/tables.py"))
READ = REPOSITORY / "docs/results"  # their tables and plots
KEPT = sorted(path.parent for path in (REPOSITORY / "docs/studies").glob(f"*/{RESULTS}"))
kept = pytest.mark.parametrize("folder", KEPT, ids=lambda folder: folder.name)


@kept
def test_rows_are_the_results_of_the_runs(folder: Path, tmp_path: Path) -> None:
    of, runs, _ = shipped(REPOSITORY / "configs/study" / f"{folder.name}.yaml")
    write_results(collect(replace(of, output=folder), runs), tmp_path / RESULTS)
    assert (tmp_path / RESULTS).read_text() == (folder / RESULTS).read_text()


@kept
def test_tables_and_plots_are_made_from_the_rows(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Check only which plots exist: rendering is slow and has its own tests.
    monkeypatch.setattr(Figure, "savefig", lambda _, path, **options: Path(path).touch())
    rows = read_results([str(folder / RESULTS)])
    assert (READ / folder.name / TABLE).read_text() == markdown(rows, "std")
    drawn = {path.name for path in draw(rows, "std", tmp_path)}
    shown = {path.name for path in (READ / folder.name).glob("*.png")}
    assert drawn == shown | {p.name for p in folder.iterdir() if p.suffix in (".png", ".svg")}


def test_numbers_in_the_findings_are_in_the_tables() -> None:
    said = (REPOSITORY / "docs/results/findings.md").read_text()
    tables = "".join((READ / folder.name / TABLE).read_text() for folder in KEPT)
    numbers = re.findall(r"\d+\.\d+ ± \d+\.\d+", said)
    assert len(numbers) >= 10
    assert {number for number in numbers if number not in tables} == set()


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
        gpu, cpu = SCRIPT["cut_runs"]()[ours], SCRIPT["evaluations"](f"kappa/runs/{theirs}")
        assert list(gpu) == [3200, 6400, 9600]
        for images, row in gpu.items():
            assert apart(row, cpu[images]) < 1e-4
            assert apart(row, cpu[images], "clip_score") < 1e-5


def test_a_complete_run_on_a_gpu_scores_as_on_a_cpu() -> None:
    found = [each for pair in SCRIPT["WHOLE"].items() for each in SCRIPT["differences"](*pair)]
    assert len(found) == 48
    assert max(found) < 0.009


def test_studies_contain_no_absolute_paths() -> None:
    for folder in KEPT:
        for path in folder.rglob("*"):
            if path.suffix in (".csv", ".json", ".md") and "images" not in path.parts:
                assert not re.search(r"(^|[\"'\s,])/\w", path.read_text()), path  # an absolute path
