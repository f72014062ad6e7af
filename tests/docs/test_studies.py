"""The studies kept in docs/: their rows are the runs', their tables and plots are the rows'."""

import csv
import re
from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from sid_lsg.commands.study import TABLE
from sid_lsg.study.plots import draw
from sid_lsg.study.results import RESULTS, collect, read_results, write_results
from sid_lsg.study.tables import markdown
from tests.helpers.paths import REPOSITORY
from tests.helpers.studies import shipped

KEPT = sorted(path.parent for path in (REPOSITORY / "docs/studies").glob(f"*/{RESULTS}"))
kept = pytest.mark.parametrize("folder", KEPT, ids=lambda folder: folder.name)


@kept
def test_rows_are_what_the_runs_wrote(folder: Path, tmp_path: Path) -> None:
    of, runs, _ = shipped(REPOSITORY / "configs/study" / f"{folder.name}.yaml")
    write_results(collect(replace(of, output=folder), runs), tmp_path / RESULTS)
    assert (tmp_path / RESULTS).read_text() == (folder / RESULTS).read_text()


@kept
def test_tables_and_plots_are_made_of_the_rows(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Which plots there are: rendering takes most of the time, and has tests of its own.
    monkeypatch.setattr(Figure, "savefig", lambda _, path, **options: Path(path).touch())
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


def test_the_tables_are_the_studies() -> None:
    said = (REPOSITORY / "docs/findings.md").read_text().split("## The demo for longer")[1]
    made = "".join((folder / TABLE).read_text() for folder in KEPT)
    score = r"\d\.\d{3}(?: ± \d\.\d{3})?"
    four = rf"{score}(?: \| {score}){{3}}"
    rows = re.findall(rf"^\| [^|]+ \|(?: [\d.]+ \| \d \|)? ({four}) \|$", said, re.MULTILINE)
    assert len(rows) >= 40
    for scores in rows:
        assert f" | {scores} |" in made, scores


def test_the_strategies_table_has_the_right_rows() -> None:
    said = (REPOSITORY / "docs/findings.md").read_text().split("## Strategies")[1].split("![")[0]
    made = (REPOSITORY / "docs/studies/strategies/results.md").read_text()
    rows = re.findall(r"^\| (.+?) \| ([\d.]+) \| (\d) \| (\d\..+) \|$", said, re.MULTILINE)
    assert len(rows) == 13
    for series, scale, seeds, scores in rows:
        assert f"| {series} | {scale} | 1 | 12,800 | {seeds} | {scores} |" in made


def test_the_table_of_steps_is_the_studys() -> None:
    said = (REPOSITORY / "docs/findings.md").read_text().split("## Numbers of steps")[1]
    made = (REPOSITORY / "docs/studies/steps/results.md").read_text()
    rows = re.findall(
        r"^\| trained in (\d steps?) \| (.+?) \| (.+?) \| (.+?) \|", said, re.MULTILINE
    )
    assert len(rows) == 3
    for trained, *fids in rows:
        for steps, fid in zip((1, 2, 4), fids, strict=True):
            assert f"| trained in | {trained} | {steps} | 12,800 | 3 | {fid} |" in made


CUT = {  # runs of one config and seed that were cut on a GPU, and their like on a CPU
    "strategies/none-1-seed0": "lsg-1-seed0",
    "limits/t-init-625-seed0": "lsg-1.2-seed0",
    "steps/trained-in-1-step-seed0": "lsg-1.5-seed0",
    "steps/trained-in-1-step-seed1": "lsg-1.5-seed1",
    "kappa/lsg-2-seed2": "lsg-2-seed2",
    "kappa/lsg-3-seed2": "lsg-3-seed2",
    "kappa/lsg-4.5-seed2": "lsg-4.5-seed2",
}
WHOLE = {  # runs on a GPU, their like on a CPU, and with how many seeds
    "steps/runs/trained-in-1-step": ("lsg-1.5", 3),
    "prompts/runs/prompts-all-captions": ("lsg-1.2", 3),
    "limits/runs/t-init-625": ("lsg-1.2", 2),
    "real_data/runs/data-free-off": ("lsg-1", 3),
    "settings/runs/alpha-1.0": ("lsg-1", 1),
}


def scored(run: str) -> dict[int, dict[str, str]]:
    """Read a kept run's evaluations, by the images seen."""
    with (REPOSITORY / f"docs/studies/{run}/metrics.csv").open(newline="") as file:
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


def apart(one: dict[str, str], other: dict[str, str], score: str = "fid") -> float:
    return abs(float(one[f"{score}_clip_2k"]) - float(other[f"{score}_clip_2k"]))


def test_a_cut_run_on_a_gpu_scores_as_on_a_cpu() -> None:
    for ours, theirs in CUT.items():
        gpu, cpu = cut()[ours], scored(f"kappa/runs/{theirs}")
        assert list(gpu) == [3200, 6400, 9600]
        for images, row in gpu.items():
            assert apart(row, cpu[images]) < 1e-4
            assert apart(row, cpu[images], "clip_score") < 1e-5


def test_a_whole_run_on_a_gpu_scores_as_on_a_cpu() -> None:
    found = []
    for ours, (theirs, seeds) in WHOLE.items():
        for seed in range(seeds):
            gpu, cpu = scored(f"{ours}-seed{seed}"), scored(f"kappa/runs/{theirs}-seed{seed}")
            assert list(gpu) == list(cpu) == [3200, 6400, 9600, 12800]
            found += [apart(gpu[images], cpu[images]) for images in gpu]
    assert len(found) == 48
    assert max(found) < 0.009
    close = sum(difference < 2e-4 for difference in found)
    assert f"agrees to 0.0002 at {close}" in (REPOSITORY / "docs/findings.md").read_text()


def test_what_is_said_of_cut_runs_is_in_their_rows() -> None:
    said = " ".join((REPOSITORY / "docs/findings.md").read_text().split())

    def fid(run: str, images: int) -> str:
        return f"{float(cut()[f'long/{run}-seed0'][images]['fid_clip_2k']):.3f}"

    for run, images in (
        ("lsg-1.1", 51_200),
        ("lsg-1.2", 57_600),
        ("faster-fake-score-1", 25_600),
        ("faster-fake-score-1.2", 19_200),
    ):
        assert f"{fid(run, images)} after {images:,}" in said
    assert f"(against {fid('lsg-1.2', 19_200)})" in said
    whole = scored("long/runs/none-1-seed0")[25_600]
    assert f"(against {float(whole['fid_clip_2k']):.3f})" in said


def test_no_machine_is_in_them() -> None:
    for folder in KEPT:
        for path in folder.rglob("*"):
            if path.suffix in (".csv", ".json", ".md") and "images" not in path.parts:
                assert not re.search(r"(^|[\"'\s,])/\w", path.read_text()), path  # no absolute path
