"""Means over seeds with error bars."""

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from sid_lsg.study.options import ErrorBars
from sid_lsg.study.results import SCORES, TEACHER, Row, published_suffixes, suffix

ERROR_BARS = {"std": "standard deviation", "sem": "standard error of the mean"}


class Mean(NamedTuple):
    """A mean over seeds and its error bar, which is None for a single seed."""

    value: float
    error: float | None


class Group(NamedTuple):
    """Scores of one evaluated model, averaged over seeds.

    Attributes:
        scored_prompts: The prompts that it was scored on.
        kind: `teacher` or `generator`.
        series: Its series.
        point: Its label.
        num_steps: Number of sampling steps.
        images_seen: Images seen in training; 0 for a teacher.
        seeds: Number of seeds.
        scores: The mean scores by name, without suffix.
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
    """Return the mean with the sample standard deviation or the standard error of the mean."""
    average = math.fsum(values) / len(values)
    if len(values) < 2:
        return Mean(average, None)
    squares = math.fsum((value - average) ** 2 for value in values)
    deviation = math.sqrt(squares / (len(values) - 1))
    return Mean(average, deviation / math.sqrt(len(values)) if kind == "sem" else deviation)


def groups(rows: Iterable[Row], kind: ErrorBars, final: bool = True) -> list[Group]:
    """Average over the seeds; groups are in the order of their first rows.

    Args:
        rows: Rows of results.
        kind: The error bars.
        final: Use only the ends of finished runs instead of all evaluations.
    """
    rows = [*rows]
    ends = dict.fromkeys(SCORES, suffix(rows))
    ends |= {score: end for score, (end,) in published_suffixes(rows).items()}
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
        Group._make((*key, len(same), _scores(same, ends, kind))) for key, same in found.items()
    ]


def _scores(same: Sequence[Row], ends: dict[str, str], kind: ErrorBars) -> dict[str, Mean]:
    values = {score: [row.get(f"{score}_{end}") for row in same] for score, end in ends.items()}
    known = {score: [v for v in some if v is not None] for score, some in values.items()}
    return {score: mean(some, kind) for score, some in known.items() if some}


def by_prompts(found: Iterable[Group]) -> dict[str, list[Group]]:
    """Group by prompts, since scores on different prompts are not comparable."""
    grouped: dict[str, list[Group]] = {}
    for group in found:
        grouped.setdefault(group.scored_prompts, []).append(group)
    return grouped


def is_teacher(group: Group) -> bool:
    """Return whether a group is the teacher's."""
    return group.kind == TEACHER
