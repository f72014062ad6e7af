"""Collect the results of a study from what its runs and evaluations have written."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sid_lsg.study.options import Study
from sid_lsg.study.plan import Run
from sid_lsg.study.results import TEACHER, Results, Row, split
from sid_lsg.study.tasks import RUNS, Task, at_steps, teacher_jobs


def collect(study: Study, runs: Sequence[Run]) -> Results:
    """Return the runs that were scored, and all evaluations, as far as they exist.

    The generator is scored during training, at its end (`final` = 1) and, after it, with other
    numbers of steps.
    """
    found = Results()
    for (task,) in teacher_jobs(study, runs):
        report = _json(task.result)
        if report is not None:
            found.evaluations.append(_teacher(task, report))
    for run in runs:
        folder = study.output / RUNS / run.name
        logged, summary = read_whole_rows(folder / "metrics.csv"), _json(folder / "summary.json")
        own = _of_fit(run, logged, summary)
        for task in at_steps(study, run):
            report = _json(task.result)
            if report is not None:
                own.append(_scored(run) | {"images_seen": run.images, "final": 1} | _scores(report))
        if own:
            found.runs.append(_described(run, logged, summary))
            found.evaluations += own
    return found


def read_whole_rows(path: Path) -> list[dict[str, str]]:
    """Read the complete rows of a CSV file that is being written; none if it does not exist."""
    if not path.is_file():
        return []
    text = path.read_bytes().decode(errors="replace")
    lines = [*csv.reader(io.StringIO(text[: text.rfind("\n") + 1]))]
    return [dict(zip(lines[0], row, strict=True)) for row in lines[1:] if len(row) == len(lines[0])]


def _json(path: Path) -> dict[str, Any] | None:
    """Read a JSON file; None if it does not exist."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _described(
    run: Run, logged: Sequence[Mapping[str, str]], summary: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Return what is kept of a run besides its evaluations."""
    speeds = [float(row["images_per_s"]) for row in logged if row.get("images_per_s")]
    return {
        "run": run.name,
        "points": [[*label] for label in run.labels],
        "seed": run.seed,
        "kappas": [*run.kappas],
        "batch_size": run.config.data.batch_size,
        "images": run.images,
        "images_per_s": sum(speeds) / len(speeds) if speeds else None,
        "fit_seconds": summary and summary.get("fit_seconds"),
        "options": run.explicit,
    }


def _teacher(task: Task, report: Mapping[str, Any]) -> Row:
    prompts = task.options["prompts"]
    return {
        "model": TEACHER,
        "guidance": task.options["guidance"],
        "final": 1,
        "scored_prompts": prompts if isinstance(prompts, str) else ", ".join(prompts),
    } | _scores(report)


def _scored(run: Run) -> Row:
    return {"model": run.name, "scored_prompts": run.scored_prompts}


def _scores(report: Mapping[str, Any]) -> Row:
    same = ("num_steps", "evaluations_per_image")
    return {**{name: report.get(name) for name in same}, **split(report["scores"])[None]}


def _of_fit(
    run: Run, logged: Sequence[Mapping[str, str]], summary: Mapping[str, Any] | None
) -> list[Row]:
    """Return a run's evaluations during training, and the last one as in summary.json."""
    own = run.config.model.num_steps
    found: dict[tuple[int, int], Row] = {}
    for row in logged:
        images = int(row["step"]) * run.config.data.batch_size
        for steps, scores in split(row).items():
            found[images, steps or own] = scores
    for steps, scores in split(summary or {}).items():
        found[run.images, steps or own] = scores
    return [
        _scored(run)
        | {"images_seen": images, "num_steps": steps, "evaluations_per_image": steps}
        | {"final": int(summary is not None and images == run.images)}
        | scores
        for (images, steps), scores in sorted(found.items())
        if scores
    ]
