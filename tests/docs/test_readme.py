"""The documentation shows the measured numbers, and its links are valid."""

import json
from pathlib import Path

import pytest

from docs.tables import BLOCK, FILES, TABLES, cells, renewed
from tests.helpers.paths import REPOSITORY


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_tables_are_up_to_date(path: Path) -> None:
    text = path.read_text()
    assert "<!-- generated: " in text
    assert text.count("<!-- generated: ") == text.count("<!-- end -->")
    assert text == renewed(text), "make tables"


def test_each_table_appears_once() -> None:
    names = [name for path in FILES for _, name in BLOCK.findall(path.read_text())]
    assert sorted(names) == sorted(TABLES)


def test_a_changed_table_is_regenerated() -> None:
    text = "before\n<!-- generated: demo -->\n| a |\n<!-- end -->\nafter\n"
    again = renewed(text)
    assert again.splitlines()[2].startswith("| | FID | CLIP |")
    assert again.startswith("before\n<!-- generated: demo -->\n")
    assert again.endswith("|\n<!-- end -->\nafter\n")
    assert renewed(again) == again


def test_the_demo_meets_its_targets() -> None:
    first, latest = (
        json.loads((REPOSITORY / f"results/{name}.json").read_text())
        for name in ("demo", "demo_latest")
    )
    for summary in (first, latest):
        assert summary["fid_clip_2k"] <= 1.2 * summary["teacher_fid_clip_2k"]
        assert summary["clip_score_clip_2k"] >= summary["teacher_clip_score_clip_2k"] - 0.01
    assert first["fit_seconds"] <= 300


def test_four_steps_of_the_flow_demo_meet_their_targets() -> None:
    summary = json.loads((REPOSITORY / "results/demo_flow.json").read_text())
    assert summary["fid_clip_2k"] <= summary["teacher_fid_clip_2k"]
    assert summary["clip_score_clip_2k"] >= summary["teacher_clip_score_clip_2k"] - 0.01


def test_the_guidance_trade_off() -> None:
    """FID is lowest at a scale between the ends, and CLIP rises with guidance."""
    rows = {
        float(row[0].split()[1]): row[1:]
        for row in cells("results/guidance.md")
        if row[0].startswith("guidance ")
    }
    assert list(rows) == [1, 1.2, 1.5, 2, 3, 4.5]
    fids, clips = ([float(row[place]) for row in rows.values()] for place in (0, 6))
    assert min(fids) not in (fids[0], fids[-1])
    assert clips == sorted(clips)
