"""The studies kept in docs/: their rows are the runs', their tables and plots are the rows'."""

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


def test_no_machine_is_in_them() -> None:
    for folder in KEPT:
        for path in folder.rglob("*"):
            if path.suffix in (".csv", ".json", ".md") and "images" not in path.parts:
                assert not re.search(r"(^|[\"'\s,])/\w", path.read_text()), path  # no absolute path
