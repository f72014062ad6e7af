"""The studies kept in docs/: their rows are the runs', their tables and plots are the rows'."""

import csv
import re
from dataclasses import replace
from pathlib import Path

import pytest
from test_study_configs import REPOSITORY, shipped

from sid_lsg.study.plots import draw
from sid_lsg.study.results import RESULTS, collect, read_results, write_results
from sid_lsg.study.tables import markdown
from sid_lsg.tools.study import TABLE

KEPT = sorted(path.parent for path in (REPOSITORY / "docs/studies").glob(f"*/{RESULTS}"))
kept = pytest.mark.parametrize("folder", KEPT, ids=lambda folder: folder.name)


@kept
def test_rows_are_what_the_runs_wrote(folder: Path, tmp_path: Path) -> None:
    of, runs, _ = shipped(REPOSITORY / "configs/study" / f"{folder.name}.yaml")
    write_results(collect(replace(of, output=folder), runs), tmp_path / RESULTS)
    assert (tmp_path / RESULTS).read_text() == (folder / RESULTS).read_text()


@kept
def test_tables_and_plots_are_made_of_the_rows(folder: Path, tmp_path: Path) -> None:
    rows = read_results([str(folder / RESULTS)])
    assert (folder / TABLE).read_text() == markdown(rows, "std")
    drawn = {path.name for path in draw(rows, "std", tmp_path)}
    assert drawn == {path.name for path in folder.iterdir() if path.suffix in (".png", ".svg")}


def test_what_is_said_of_them_is_in_their_tables() -> None:
    said = (REPOSITORY / "docs/findings.md").read_text()
    tables = "".join((folder / TABLE).read_text() for folder in KEPT)
    numbers = re.findall(r"\d+\.\d+ ± \d+\.\d+", said)
    assert len(numbers) >= 10
    assert {number for number in numbers if number not in tables} == set()


def test_the_strategies_table_is_the_studys() -> None:
    said = (REPOSITORY / "docs/findings.md").read_text().split("## Strategies")[1].split("![")[0]
    made = (REPOSITORY / "docs/studies/strategies/results.md").read_text()
    rows = re.findall(r"^\| (.+?) \| ([\d.]+) \| (\d) \| (\d\..+) \|$", said, re.MULTILINE)
    assert len(rows) == 13
    for series, scale, seeds, scores in rows:
        assert f"| {series} | {scale} | 1 | 12,800 | {seeds} | {scores} |" in made


SCORES = ("fid_clip_2k", "clip_score_clip_2k", "precision_clip_2k", "recall_clip_2k")
SAME = {  # runs of one config and seed, on a GPU and on a CPU
    "strategies/none-1-seed0": "lsg-1-seed0",
    "limits/t-init-625-seed0": "lsg-1.2-seed0",
    "steps/trained-in-1-step-seed0": "lsg-1.5-seed0",
    "steps/trained-in-1-step-seed1": "lsg-1.5-seed1",
    "kappa/lsg-2-seed2": "lsg-2-seed2",
    "kappa/lsg-3-seed2": "lsg-3-seed2",
    "kappa/lsg-4.5-seed2": "lsg-4.5-seed2",
}


def scored(path: Path) -> dict[int, dict[str, str]]:
    """Read a run's evaluations, by the images seen."""
    with path.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row.get("fid_clip_2k")]
    return {int(float(row["images_seen"])): row for row in rows}


def cut() -> dict[str, dict[int, dict[str, str]]]:
    """Read the runs that were cut, each one's evaluations by the images seen."""
    found: dict[str, dict[int, dict[str, str]]] = {}
    with (REPOSITORY / "docs/cut_runs.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            name = f"{row['study']}/{row['run']}"
            found.setdefault(name, {})[int(row["images_seen"])] = row
    return found


def test_a_run_on_a_gpu_scores_as_on_a_cpu() -> None:
    runs = REPOSITORY / "docs/studies/kappa/runs"
    for ours, theirs in SAME.items():
        gpu, cpu = cut()[ours], scored(runs / theirs / "metrics.csv")
        assert list(gpu) == [3200, 6400, 9600]
        for images, row in gpu.items():
            fids = (float(which[images]["fid_clip_2k"]) for which in (gpu, cpu))
            assert abs(next(fids) - next(fids)) < 1e-4
            assert float(row["clip_score_clip_2k"]) == pytest.approx(
                float(cpu[images]["clip_score_clip_2k"]), abs=1e-5
            )


def test_what_is_said_of_cut_runs_is_in_their_rows() -> None:
    said = (REPOSITORY / "docs/findings.md").read_text().split("## A first look")[1]
    rows = [run[9600] for run in cut().values() if 9600 in run]
    rows += [
        scored(path)[9600]
        for path in (REPOSITORY / "docs/studies/kappa/runs").glob("*/metrics.csv")
    ]
    known = {" | ".join(f"{float(row[score]):.3f}" for score in SCORES) for row in rows}
    found = re.findall(r"\| (\d\.\d{3}(?: \| \d\.\d{3}){3}) \|", said)
    assert len(found) == 15
    assert set(found) <= known
    for name, images in (("lsg-1.1-seed0", 51200), ("lsg-1.2-seed0", 57600)):
        assert f"{float(cut()[f'long/{name}'][images]['fid_clip_2k']):.3f} after {images:,}" in said


def test_no_machine_is_in_them() -> None:
    for folder in KEPT:
        for path in folder.rglob("*"):
            if path.suffix in (".csv", ".json", ".md") and "images" not in path.parts:
                assert not re.search(r"(^|[\"'\s,])/\w", path.read_text()), path  # no absolute path
