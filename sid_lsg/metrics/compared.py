"""Read what evaluations wrote, and tabulate several models."""

import csv
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from sid_lsg.files.replacing import replacing
from sid_lsg.messages.words import table
from sid_lsg.metrics.intervals import RESAMPLES, Interval, groups_of, interval, pair

IMAGES, REPORT, EACH = "images", "report.json", "images.csv"
COMPARED = "compared"  # the models, in the report.json of a comparison
Table = tuple[list[str], list[list[str]]]
"""The head and the rows of a table."""

_FILE, _PROMPT = "file_name", "prompt"
_SETTINGS = ("sampler", "num_steps", "guidance", "resolution", "dtype")
_COSTS = {"evaluations_per_image": "NFE", "seconds_per_image": "s/image"}


@dataclass(frozen=True)
class Result:
    """The report of one evaluation.

    Attributes:
        content: The content of report.json.
        files: The images; empty for reports of earlier versions.
        prompts: Their prompts; empty if there are none.
        each: The scores of each image, by the scores' names.
    """

    content: dict[str, Any]
    files: Sequence[Path]
    prompts: Sequence[str]
    each: dict[str, list[float]]

    @property
    def name(self) -> str:
        """The model's name."""
        return str(self.content["name"])

    @cached_property
    def groups(self) -> np.ndarray:
        """The number of each image's prompt."""
        return groups_of(self.prompts) if self.prompts else np.arange(len(self.files))

    @cached_property
    def intervals(self) -> dict[str, Interval]:
        """The intervals of the scores that each image has."""
        return {name: interval(values, self.groups) for name, values in self.each.items()}

    def save(self, root: Path) -> None:
        """Write images.csv, then report.json."""
        images = Path(self.content["images"]).expanduser()
        with (
            replacing(root / EACH) as temporary,
            # Names of files need not be valid UTF-8.
            temporary.open("w", encoding="utf-8", newline="", errors="surrogateescape") as file,
        ):
            writer = csv.writer(file)
            writer.writerow([_FILE, _PROMPT, *self.each])
            columns = [self.prompts or [""] * len(self.files), *self.each.values()]
            for path, *row in zip(self.files, *columns, strict=True):
                writer.writerow([path.relative_to(images).as_posix(), *row])
        with replacing(root / REPORT) as temporary:
            text = json.dumps(self.content, indent=2, ensure_ascii=False)
            temporary.write_text(f"{text}\n", encoding="utf-8", errors="surrogateescape")


def read_result(path: Path) -> Result:
    """Read a report.json, and the scores of each image beside it.

    Raises:
        OSError, ValueError, TypeError, KeyError: If there is none.
    """
    content = load(path)
    if COMPARED in content:
        raise ValueError("it compares other reports")
    each = path.with_name(EACH)
    files, prompts, values = _read_each(each) if each.is_file() else ([], [], {})
    images = Path(content.get("images", "")).expanduser()
    if not images.is_dir():  # relative to another working directory, or moved
        images = path.with_name(IMAGES)
    return Result(content, [images / name for name in files], prompts, values)


def load(path: Path) -> dict[str, Any]:
    """Read a report.json.

    Raises:
        OSError, ValueError: If it is none.
    """
    text = path.read_text(encoding="utf-8", errors="surrogateescape")
    content: dict[str, Any] = json.loads(text)
    if "scores" not in content:
        raise ValueError("it has no scores")
    return content


def _read_each(path: Path) -> tuple[list[str], list[str], dict[str, list[float]]]:
    with path.open(encoding="utf-8", newline="", errors="surrogateescape") as file:
        rows = list(csv.DictReader(file, strict=True))
    names = [name for name in rows[0] if name not in (_FILE, _PROMPT)] if rows else []
    prompts = [row[_PROMPT] for row in rows]
    values = {name: [float(row[name]) for row in rows] for name in names}
    return [row[_FILE] for row in rows], prompts if any(prompts) else [], values


def scores_of(results: Sequence[Result]) -> list[str]:
    """Return the names of all scores, those of the last report first."""
    return list(dict.fromkeys(key for one in reversed(results) for key in one.content["scores"]))


def score_rows(results: Sequence[Result]) -> Table:
    """Return the head and a row per model: its scores with their intervals, NFE and seconds."""
    keys = scores_of(results)
    rows = []
    for one in results:
        cells = [_cell(one.content["scores"].get(key), one.intervals.get(key)) for key in keys]
        rows.append([one.name, *cells, *(number(one.content.get(cost)) for cost in _COSTS)])
    return ["", *keys, *_COSTS.values()], rows


def pair_rows(results: Sequence[Result]) -> Table:
    """Return the head and a row per two models and score that both have for each image."""
    head = ["", "score", "difference", "prompts won", "prompts tied"]
    rows = []
    for first, second in combinations(results, 2):
        if not first.prompts or first.prompts != second.prompts:
            continue
        for key in first.each.keys() & second.each.keys():
            found = pair(first.each[key], second.each[key], first.groups)
            shares = [f"{100 * share:.1f}%" for share in (found.wins, found.ties)]
            difference = _cell(found.difference.mean, found.difference)
            rows.append([f"{first.name} - {second.name}", key, difference, *shares])
    order = scores_of(results)
    return head, sorted(rows, key=lambda row: order.index(row[1]))


def note(results: Sequence[Result]) -> str:
    """Say what the intervals are, and which scores have none; "" if there are none at all."""
    known = {key for one in results for key in one.each}
    if not known:
        return ""
    prompts = max(len(set(one.groups)) for one in results)
    others = [key for key in scores_of(results) if key not in known]
    text = (
        f"In brackets: 95% intervals by bootstrap over {prompts:,} prompts ({RESAMPLES:,} draws)."
    )
    if others:
        text += f" Not given for scores of the whole set of images: {', '.join(others)}."
    return text


def markdown(tables: Sequence[Table], text: str) -> str:
    """Format the tables that have rows, and the note, as Markdown."""
    parts = [table(head, rows) for head, rows in tables if rows]
    return "\n\n".join(filter(None, [*parts, text]))


def write_csv(results: Sequence[Result], path: Path) -> None:
    """Write a row per model: settings, scores with the bounds of their intervals, and costs."""
    rows = []
    for one in results:
        row: dict[str, Any] = {"name": one.name}
        row |= {name: one.content.get(name) for name in (*_SETTINGS, "num_images")}
        for key in scores_of(results):
            row[key] = one.content["scores"].get(key)
            if any(key in other.each for other in results):
                found = one.intervals.get(key)
                bounds = (
                    (found.low, found.high) if found and not math.isnan(found.low) else (None,) * 2
                )
                row[f"{key}_low"], row[f"{key}_high"] = bounds
        rows.append(row | {cost: one.content.get(cost) for cost in _COSTS})
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def number(value: float | int | None) -> str:
    """Format a number of a table; "-" for None."""
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.4g}"


def distinct_names(results: Sequence[Result]) -> Iterator[str]:
    """Yield the names, which may repeat (the default is the folder's), told apart by primes."""
    seen: set[str] = set()
    for one in results:
        name = one.name
        while name in seen:
            name += "'"
        seen.add(name)
        yield name


def _cell(value: float | int | None, found: Interval | None) -> str:
    if found is None or math.isnan(found.low):
        return number(value)
    return f"{number(value)} [{number(found.low)}, {number(found.high)}]"
