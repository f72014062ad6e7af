"""Collecting the results of a study from the files of its runs and evaluations."""

import csv
import json
from pathlib import Path
from typing import Any

from sid_lsg.study.collect import collect, read_whole_rows
from sid_lsg.study.options import Series, Study, Teacher
from sid_lsg.study.plan import plan
from sid_lsg.study.results import read_results, write_results
from tests.helpers.paths import REPOSITORY
from tests.helpers.studies import read

PROMPTS = "package:demo/fashion/prompts.txt"


def write_json(path: Path, **values: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values))


def write_metrics(folder: Path, *rows: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["step", "images_per_s", "loss_fake", "fid_clip_2k"])
        writer.writeheader()
        writer.writerows(rows)


def test_what_the_runs_wrote_is_collected(tmp_path: Path) -> None:
    same = {"model.alpha": 1.0}
    points = {"1": same, "2": {"model.alpha": 2.0}}
    of = Study(
        output=tmp_path, base=[str(REPOSITORY / "configs/demo.yaml")], options={}, seeds=[0, 1],
        series={"alpha": Series(points), "same": Series({"x": same})},
        images=128, teacher=Teacher([25], [1.5]), generator_steps=[1, 4],
    )  # fmt: skip
    runs = plan(of, read, set())
    assert collect(of, runs).runs == collect(of, runs).evaluations == []

    write_json(
        tmp_path / "evaluations/teacher-prompts-steps25-guidance1.5/report.json",
        scores={"fid_clip_2k": 0.2}, num_steps=25, evaluations_per_image=50,
    )  # fmt: skip
    finished = tmp_path / "runs/alpha-1-seed0"
    write_metrics(
        finished,
        {"step": 1, "images_per_s": 10.0, "fid_clip_2k": 3.0},
        {"step": 2, "images_per_s": 20.0, "fid_clip_2k": 1.0},
    )
    write_json(finished / "summary.json", fid_clip_2k=1.25, teacher_fid_clip_2k=9, fit_seconds=7.5)
    write_json(
        tmp_path / "evaluations/alpha-1-seed0-steps4/report.json",
        scores={"fid_clip_2k": 0.75}, num_steps=4, evaluations_per_image=4,
    )  # fmt: skip
    write_metrics(tmp_path / "runs/alpha-2-seed1", {"step": 1, "fid_clip_2k": 5.0})
    write_metrics(tmp_path / "runs/alpha-2-seed0", {"step": 1, "loss_fake": 5.0})  # not scored

    results = collect(of, runs)
    first, second = results.runs
    assert first == {
        "run": "alpha-1-seed0", "points": [["alpha", "1"], ["same", "x"]], "seed": 0,
        "kappas": [1.0] * 4, "batch_size": 64, "images": 128, "images_per_s": 15.0,
        "fit_seconds": 7.5, "options": runs[0].explicit,
    }  # fmt: skip
    assert (second["run"], second["images_per_s"], second["fit_seconds"]) == (
        "alpha-2-seed1", None, None,
    )  # fmt: skip
    own = {"model": "alpha-1-seed0", "scored_prompts": PROMPTS}
    assert results.evaluations == [
        {"model": "teacher", "scored_prompts": PROMPTS, "guidance": 1.5, "final": 1,
         "num_steps": 25, "evaluations_per_image": 50, "fid_clip_2k": 0.2},
        own | {"images_seen": 64, "num_steps": 1, "evaluations_per_image": 1, "final": 0,
               "fid_clip_2k": 3.0},
        own | {"images_seen": 128, "num_steps": 1, "evaluations_per_image": 1, "final": 1,
               "fid_clip_2k": 1.25},  # as in summary.json
        own | {"images_seen": 128, "num_steps": 4, "evaluations_per_image": 4, "final": 1,
               "fid_clip_2k": 0.75},
        own | {"model": "alpha-2-seed1", "images_seen": 64, "num_steps": 1,
               "evaluations_per_image": 1, "final": 0, "fid_clip_2k": 5.0},
    ]  # fmt: skip
    write_results(results, tmp_path)
    assert read_results(tmp_path) == results


def test_an_unfinished_file_is_read_up_to_its_last_complete_row(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    assert read_whole_rows(path) == []
    text = "a,b\n1,2\n3,4\n5,6"
    for end in range(len(text)):
        path.write_text(text[:end])
        whole = text[:end].count("\n") - 1
        assert [r["a"] for r in read_whole_rows(path)] == ["1", "3"][: max(0, whole)]
