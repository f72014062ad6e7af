"""Collect a study's results into one CSV file with a row per evaluation."""

import csv
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sid_lsg.files.replacing import replacing
from sid_lsg.messages.errors import UsageError
from sid_lsg.study.options import Study
from sid_lsg.study.plan import Run
from sid_lsg.study.tasks import RUNS, Task, at_steps, teacher_jobs

Row = dict[str, Any]

RESULTS = "results.csv"
TEACHER, GENERATOR = "teacher", "generator"
SCORES = ("fid", "kid", "precision", "recall", "density", "coverage", "clip_score")
_KAPPAS = tuple(f"kappa_{i}" for i in (1, 2, 3, 4))
_TEXTS = ("kind", "series", "point", "scored_prompts")
_NUMBERS = (
    "seed", "num_steps", "guidance", "images_seen", "final", "evaluations_per_image", *_KAPPAS,
    "batch_size", "images_per_s", "fit_seconds",
)  # fmt: skip
_SCORE = re.compile(rf"((?:{'|'.join(SCORES)})_\w+?)(?:_(\d+)_steps?)?")


def collect(study: Study, runs: Sequence[Run]) -> list[Row]:
    """Read what a study's runs and evaluations have written so far.

    A row is an evaluation in `num_steps` steps: of the teacher, or of a run's EMA during training
    or at its end (`final` = 1).
    """
    rows = []
    for (task,) in teacher_jobs(study, runs):
        report = _json(task.result)
        if report is not None:
            rows.append(_teacher_row(task, report))
    for run in runs:
        found = _fit_rows(study, run)
        for task in at_steps(study, run):
            report = _json(task.result)
            if report is not None:
                found.append(_facts(run) | _evaluated(report) | {
                    "images_seen": run.images, "final": 1,
                })  # fmt: skip
        for series, point in run.labels:
            rows += [row | {"series": series, "point": point} for row in found]
    return rows


def _json(path: Path) -> dict[str, Any] | None:
    """Read a JSON file; None if it does not exist."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _teacher_row(task: Task, report: Mapping[str, Any]) -> Row:
    prompts, guidance = task.options["prompts"], task.options["guidance"]
    return {
        "kind": TEACHER,
        "series": TEACHER,
        "point": f"{guidance:g}",
        "guidance": guidance,
        "final": 1,
        "scored_prompts": prompts if isinstance(prompts, str) else ", ".join(prompts),
    } | _evaluated(report)


def _evaluated(report: Mapping[str, Any]) -> Row:
    same = ("num_steps", "evaluations_per_image")
    return {**{name: report.get(name) for name in same}, **split(report["scores"])[None]}


def _facts(run: Run) -> Row:
    """Return the columns that are the same in all rows of a run."""
    return {
        "kind": GENERATOR,
        "seed": run.seed,
        "scored_prompts": run.scored_prompts,
        "batch_size": run.config.data.batch_size,
        **dict(zip(_KAPPAS, run.kappas, strict=True)),
    }


def _fit_rows(study: Study, run: Run) -> list[Row]:
    """Read a run's evaluations from metrics.csv, and the last one also from summary.json."""
    folder, own = study.output / RUNS / run.name, run.config.model.num_steps
    found: dict[tuple[int, int], Row] = {}
    speeds = []
    for logged in read_whole_rows(folder / "metrics.csv"):
        if logged.get("images_per_s"):
            speeds.append(float(logged["images_per_s"]))
        images = int(logged["step"]) * run.config.data.batch_size
        for steps, scores in split(logged).items():
            found[images, steps or own] = scores
    summary = _json(folder / "summary.json")
    if summary is not None:
        for steps, scores in split(summary).items():
            found[run.images, steps or own] = scores
    rest = {
        "images_per_s": sum(speeds) / len(speeds) if speeds else None,
        "fit_seconds": summary and summary.get("fit_seconds"),
    }
    return [
        _facts(run)
        | {"images_seen": images, "num_steps": steps, "evaluations_per_image": steps}
        | {"final": int(summary is not None and images == run.images)}
        | (rest if (images, steps) == (run.images, own) else {})
        | scores
        for (images, steps), scores in sorted(found.items())
        if scores
    ]


def split(values: Mapping[str, Any]) -> dict[int | None, dict[str, float]]:
    """Find the scores among logged values, by the number of steps in their name, or None."""
    found: dict[int | None, dict[str, float]] = {None: {}}
    for name, value in values.items():
        match = _SCORE.fullmatch(name)
        if match and value not in ("", None):
            steps = int(match[2]) if match[2] else None
            found.setdefault(steps, {})[match[1]] = float(value)
    return found


def read_whole_rows(path: Path) -> list[dict[str, str]]:
    """Read the complete rows of a CSV file that is being written; none if it does not exist."""
    if not path.is_file():
        return []
    text = path.read_bytes().decode(errors="replace")
    lines = [*csv.reader(io.StringIO(text[: text.rfind("\n") + 1]))]
    return [dict(zip(lines[0], row, strict=True)) for row in lines[1:] if len(row) == len(lines[0])]


def write_results(rows: Iterable[Row], path: Path) -> None:
    """Write rows; numbers are read back bitwise equal."""
    rows = [*rows]
    scores = sorted({name for row in rows for name in row if _SCORE.fullmatch(name)}, key=_order)
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*_TEXTS, *_NUMBERS, *scores], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read_results(paths: Sequence[str]) -> list[Row]:
    """Read rows from one or several results files.

    Raises:
        UsageError: If a file is no results file, or the files' scores are not comparable.
    """
    rows: list[Row] = []
    for path in paths:
        try:
            found = read_whole_rows(Path(path)) if Path(path).is_file() else None
            if not found or not {*_TEXTS, *_NUMBERS} <= found[0].keys():
                raise ValueError("it has no rows" if found == [] else "it is not a results file")
            rows += [
                {n: v if n in _TEXTS else float(v) for n, v in row.items() if v != ""}
                for row in found
            ]
        except (OSError, ValueError) as error:
            raise UsageError(
                f"--results: cannot use {path!r} ({error}). Give a {RESULTS} that `study` wrote."
            ) from error
    suffix(rows)
    _check_once(rows)
    return rows


def _check_once(rows: Iterable[Row]) -> None:
    """Reject an evaluation that appears twice, since a mean would count it as another seed."""
    seen = set()
    for row in rows:
        if row["kind"] == GENERATOR:
            same = ("scored_prompts", "series", "point", "seed", "num_steps", "images_seen")
            key = tuple(row.get(name) for name in same)
            if key in seen:
                raise UsageError(
                    f"--results: {row['series']}, {row['point']}, seed {row.get('seed', 0):g} is "
                    f"in them twice, after {row.get('images_seen', 0):g} images. Give each file "
                    "of a study once, or files with different seeds."
                )
            seen.add(key)


def suffix(rows: Iterable[Mapping[str, Any]]) -> str:
    """Return the suffix of the scores' names: protocol and number of images.

    Raises:
        UsageError: If there are several suffixes, since such scores are not comparable.
    """
    found = sorted(
        {
            name.removeprefix(f"{score}_")
            for row in rows
            for name in row
            for score in SCORES
            if name.startswith(f"{score}_")
        }
    )
    if len(found) > 1:
        raise UsageError(
            f"--results: scores of {' and '.join(found)} are not comparable. Give files of one "
            "protocol and number of images."
        )
    return found[0] if found else ""


def _order(name: str) -> tuple[int, str]:
    return next(i for i, score in enumerate(SCORES) if name.startswith(f"{score}_")), name
