"""Means over seeds, with their spread."""

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from sid_lsg.study.options import ErrorBars
from sid_lsg.study.results import SCORES, TEACHER, Row, suffix

ERROR_BARS = {"std": "standard deviation", "sem": "standard error of the mean"}


class Mean(NamedTuple):
    """A mean over seeds, and its error bar, which a single seed has not."""

    value: float
    error: float | None


class Group(NamedTuple):
    """The rows of one thing that was evaluated, over its seeds.

    Attributes:
        scored_prompts: What it was scored on.
        kind: `teacher` or `generator`.
        series: Its series.
        point: Its label.
        num_steps: Steps that it was sampled in.
        images_seen: Images of its training; 0 for a teacher.
        seeds: How many seeds.
        scores: The mean scores, by their plain names.
    """

    scored_prompts: str
    kind: str
    series: str
    point: str
    num_steps: int
    images_seen: int
    seeds: int
    scores: dict[str, Mean]


def mean(values: Sequence[float], kind: ErrorBars) -> Mean:
    """Return mean and error bar: the sample's standard deviation, or that of the mean."""
    average = math.fsum(values) / len(values)
    if len(values) < 2:
        return Mean(average, None)
    squares = math.fsum((value - average) ** 2 for value in values)
    deviation = math.sqrt(squares / (len(values) - 1))
    return Mean(average, deviation / math.sqrt(len(values)) if kind == "sem" else deviation)


def groups(rows: Iterable[Row], kind: ErrorBars, final: bool = True) -> list[Group]:
    """Average over the seeds, in the order in which the rows first name each group.

    Args:
        rows: Rows of results.
        kind: The error bars.
        final: Whether to take ends of finished runs alone, or all evaluations while training.
    """
    rows = [*rows]
    protocol = suffix(rows)
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        if final and not int(row.get("final") or 0):
            continue
        key = (
            row["scored_prompts"], row["kind"], row["series"], row["point"],
            int(row.get("num_steps") or 1), int(row.get("images_seen") or 0),
        )  # fmt: skip
        found.setdefault(key, []).append(row)
    return [
        Group._make((*key, len(same), _scores(same, protocol, kind))) for key, same in found.items()
    ]


def _scores(same: Sequence[Row], protocol: str, kind: ErrorBars) -> dict[str, Mean]:
    values = {score: [row.get(f"{score}_{protocol}") for row in same] for score in SCORES}
    known = {score: [v for v in some if v is not None] for score, some in values.items()}
    return {score: mean(some, kind) for score, some in known.items() if some}


def by_prompts(found: Iterable[Group]) -> dict[str, list[Group]]:
    """Sort groups by what they were scored on: scores on other prompts do not compare."""
    sorted_out: dict[str, list[Group]] = {}
    for group in found:
        sorted_out.setdefault(group.scored_prompts, []).append(group)
    return sorted_out


def is_teacher(group: Group) -> bool:
    """Tell whether a group is of the teacher."""
    return group.kind == TEACHER
