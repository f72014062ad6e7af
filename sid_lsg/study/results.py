"""A study's results in two files: a line per run, and a row per evaluation."""

import csv
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sid_lsg.files.replacing import replacing
from sid_lsg.messages.errors import UsageError
from sid_lsg.options.choices import PUBLISHED_SCORES

Row = dict[str, Any]

RUNS_FILE, EVALUATIONS_FILE = "runs.jsonl", "evaluations.csv"
TEACHER, GENERATOR = "teacher", "generator"
SCORES = ("fid", "kid", "precision", "recall", "density", "coverage", "clip_score")
_TEXTS = ("model", "scored_prompts")
_NUMBERS = ("num_steps", "guidance", "images_seen", "final", "evaluations_per_image")
_SCORE = re.compile(rf"((?:{'|'.join((*PUBLISHED_SCORES, *SCORES))})_\w+?)(?:_(\d+)_steps?)?")


@dataclass
class Results:
    """Runs and evaluations of a study.

    Attributes:
        runs: Each run's name, its points as (series, point), seed, kappas, batch size, images,
            speed and explicitly set options.
        evaluations: Each evaluation's model (the name of a run, or `teacher`), the prompts and the
            number of steps that it was scored with, and its scores; of a generator the images that
            it had seen, and of the teacher the guidance.
    """

    runs: list[dict[str, Any]] = field(default_factory=list)
    evaluations: list[Row] = field(default_factory=list)

    def rows(self) -> list[Row]:
        """Return a row per evaluation and point of its run, with series, point and seed.

        Raises:
            ValueError: If an evaluation's run is missing.
        """
        known = {run["run"] for run in self.runs}
        of: dict[str, list[Row]] = {}
        for row in self.evaluations:
            if row["model"] != TEACHER and row["model"] not in known:
                raise ValueError(f"{RUNS_FILE} does not have the run {row['model']!r}")
            of.setdefault(row["model"], []).append(row)
        rows = [
            {"kind": TEACHER, "series": TEACHER, "point": f"{row['guidance']:g}"} | row
            for row in of.get(TEACHER, [])
        ]
        for run in self.runs:
            for series, point in run["points"]:
                same = {"kind": GENERATOR, "series": series, "point": point, "seed": run["seed"]}
                rows += [same | row for row in of.get(run["run"], [])]
        return rows


def write_results(results: Results, folder: Path) -> None:
    """Write both files; numbers are read back bitwise equal."""
    # The runs first: after a crash in between, each evaluation still has its run.
    with replacing(folder / RUNS_FILE) as temporary:
        lines = (json.dumps(run, ensure_ascii=False) for run in results.runs)
        temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    names = {name for row in results.evaluations for name in row if _SCORE.fullmatch(name)}
    columns = [*_TEXTS, *_NUMBERS, *sorted(names, key=_order)]
    with (
        replacing(folder / EVALUATIONS_FILE) as temporary,
        temporary.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(results.evaluations)


def read_results(folder: Path) -> Results:
    """Read both files of a study.

    Raises:
        OSError: If one cannot be read.
        ValueError: If one is damaged.
    """
    text = (folder / RUNS_FILE).read_text(encoding="utf-8")
    runs = [json.loads(line) for line in text.splitlines()]
    with (folder / EVALUATIONS_FILE).open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if not {*_TEXTS, *_NUMBERS} <= {*(reader.fieldnames or ())}:
            raise ValueError(f"{EVALUATIONS_FILE} lacks columns")
        cells = []
        for row in reader:
            if None in row or None in row.values():
                raise ValueError(
                    f"{EVALUATIONS_FILE} has a row that is not as long as its header, in line "
                    f"{reader.line_num}"
                )
            cells.append(row)
    rows = [{name: _value(name, v) for name, v in row.items() if v != ""} for row in cells]
    if not all(isinstance(run, dict) and {"run", "points", "seed"} <= run.keys() for run in runs):
        raise ValueError(f"{RUNS_FILE} has a line that describes no run")
    if any("guidance" not in row for row in rows if row["model"] == TEACHER):
        raise ValueError(f"{EVALUATIONS_FILE} has a row of the teacher without guidance")
    return Results(runs, rows)


def read_rows(folders: Sequence[str]) -> list[Row]:
    """Read the rows of one or several studies.

    An evaluation of the teacher that several studies made is returned once, as in the first.

    Raises:
        UsageError: If a folder has no results, or the scores are not comparable.
    """
    rows: list[Row] = []
    for folder in folders:
        try:
            found = read_results(Path(folder).expanduser()).rows()
            if not found:
                raise ValueError("it has no evaluations")
        except (OSError, ValueError) as error:
            reason = str(error)
            if isinstance(error, OSError):
                reason = f"{Path(error.filename or folder).name}: {error.strerror}"
            raise UsageError(
                f"--results: cannot use {folder!r} ({reason}). Give the folder of a study, which "
                f"has {RUNS_FILE} and {EVALUATIONS_FILE}; `study` writes them for an earlier "
                "study too if it is run again, and repeats nothing that is finished."
            ) from error
        rows += found
    rows = _teachers_once(rows)
    suffix(rows)
    _check_once(rows)
    return rows


def split(values: Mapping[str, Any]) -> dict[int | None, dict[str, float]]:
    """Find the scores among logged values, by the number of steps in their name, or None."""
    found: dict[int | None, dict[str, float]] = {None: {}}
    for name, value in values.items():
        match = _SCORE.fullmatch(name)
        if match and value not in ("", None):
            steps = int(match[2]) if match[2] else None
            found.setdefault(steps, {})[match[1]] = float(value)
    return found


def _value(name: str, text: str) -> str | float:
    """Convert a cell of evaluations.csv; integers stay integers."""
    if name in _TEXTS:
        return text
    return int(text) if text.isdecimal() else float(text)


def _teachers_once(rows: Iterable[Row]) -> list[Row]:
    """Drop repeated evaluations of the teacher, which has no seeds to average over."""
    seen = set()
    kept = []
    for row in rows:
        key = tuple(row.get(name) for name in ("scored_prompts", "num_steps", "guidance"))
        if row["kind"] != TEACHER or key not in seen:
            kept.append(row)
        if row["kind"] == TEACHER:
            seen.add(key)
    return kept


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
                    f"in them twice, after {row.get('images_seen', 0):g} images. Give each folder "
                    "once, or folders of a study with different seeds."
                )
            seen.add(key)


def suffix(rows: Iterable[Mapping[str, Any]]) -> str:
    """Return the suffix of the scores' names: protocol and number of images.

    Raises:
        UsageError: If a published score, or the others together, have several suffixes, since such
            scores are not comparable.
    """
    suffixes = published_suffixes(rows := [*rows])
    for score, several in suffixes.items():
        if len(several) > 1:
            raise UsageError(
                f"--results: {score} of {' and '.join(sorted(several))} are not comparable. Give "
                "studies of one network and number of images."
            )
    found = sorted(
        {
            name.removeprefix(f"{score}_")
            for row in rows
            for name in row
            for score in SCORES
            if name.startswith(f"{score}_") and _published(name) is None
        }
    )
    if len(found) > 1:
        raise UsageError(
            f"--results: scores of {' and '.join(found)} are not comparable. Give studies of one "
            "protocol and number of images."
        )
    return found[0] if found else ""


def published_suffixes(rows: Iterable[Mapping[str, Any]]) -> dict[str, set[str]]:
    """Return the suffixes of each published score's names in rows."""
    found: dict[str, set[str]] = {}
    for row in rows:
        for name in row:
            if score := _published(name):
                found.setdefault(score, set()).add(name.removeprefix(f"{score}_"))
    return found


def _published(name: str) -> str | None:
    return next((score for score in PUBLISHED_SCORES if name.startswith(f"{score}_")), None)


def _order(name: str) -> tuple[int, str]:
    if score := _published(name):
        return len(SCORES) + PUBLISHED_SCORES.index(score), name
    return next(i for i, score in enumerate(SCORES) if name.startswith(f"{score}_")), name
