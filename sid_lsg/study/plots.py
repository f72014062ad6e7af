"""Plot a study's scores."""

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from sid_lsg.files.replacing import replacing
from sid_lsg.messages.words import steps
from sid_lsg.study.options import ErrorBars
from sid_lsg.study.results import Row, suffix
from sid_lsg.study.statistics import ERROR_BARS, Group, by_prompts, groups, is_teacher

NAMES = "fid_clip", "precision_recall", "fid_images", "fid_steps", "scores"
_LABELS = {"fid": "FID", "clip_score": "CLIP score", "precision": "precision", "recall": "recall"}
_STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "legend.fontsize": 8,
    "legend.frameon": False,
}
_MARKERS = "os^Dv<>Pp*X"


def draw(rows: Sequence[Row], kind: ErrorBars, folder: Path) -> list[Path]:
    """Draw all plots that the rows have data for, and return the PNG files."""
    figures = plots(rows, kind)
    written = []
    for name in NAMES:
        path = folder / f"{name}.png"
        if name not in figures:
            path.unlink(missing_ok=True)  # drawn earlier from other rows
            continue
        with replacing(path) as temporary, rc_context(_STYLE):
            # Without the software's version, the same rows give the same bytes.
            figures[name].savefig(temporary, format="png", dpi=150, metadata={"Software": None})
        written.append(path)
    return written


def plots(rows: Sequence[Row], kind: ErrorBars) -> dict[str, Figure]:
    """Return all plots that the rows have data for, by name.

    Scores of the teacher with too few steps appear only in the plot over steps; elsewhere they
    would dominate the axes.
    """
    ends = groups(rows, kind)
    near = _near(ends)
    curves = [g for g in groups(rows, kind, final=False) if not is_teacher(g)]
    note = f"error bars: {ERROR_BARS[kind]}" if any(g.seeds > 1 for g in curves) else ""
    drawn = (
        across(near, "clip_score", "fid"),
        across(near, "recall", "precision"),
        over_images(curves, [g for g in ends if is_teacher(g)]),
        over_steps(ends),
        by_point(near),
    )
    figures = {name: figure for name, figure in zip(NAMES, drawn, strict=True) if figure}
    for figure in figures.values():
        figure.suptitle(f"{suffix(rows)}  {note}", x=0.99, ha="right", fontsize=7)
    return figures


def across(found: Sequence[Group], x: str, y: str) -> Figure | None:
    """Plot one score over another: a line per series, and per number of steps for the teacher."""
    panels = by_prompts(g for g in found if x in g.scores and y in g.scores)

    def panel(axes: Axes, same: Sequence[Group]) -> None:
        for number, (label, line) in enumerate(_lines(same).items()):
            teacher = is_teacher(line[0])
            axes.errorbar(
                [g.scores[x].value for g in line],
                [g.scores[y].value for g in line],
                xerr=[g.scores[x].error or 0 for g in line],
                yerr=[g.scores[y].error or 0 for g in line],
                marker=_MARKERS[number % len(_MARKERS)],
                linestyle="--" if teacher else "-",
                color="black" if teacher else f"C{number % 10}",
                alpha=0.8,
                capsize=2,
                markersize=4,
                label=label,
            )
            for g in line:
                place = (g.scores[x].value, g.scores[y].value)
                axes.annotate(g.point, place, (3, 3), textcoords="offset points", fontsize=7)
        axes.set_xlabel(_LABELS[x])
        axes.set_ylabel(_LABELS[y])
        axes.legend()

    return _figure(panels, panel)


def over_images(curves: Sequence[Group], teachers: Sequence[Group]) -> Figure | None:
    """Plot the FID over the images seen, with a panel per series."""
    panels: dict[str, list[Group]] = {}
    several = len({g.scored_prompts for g in curves}) > 1
    for group in curves:
        if "fid" in group.scores and group.images_seen:
            where = f"{group.series}\non {group.scored_prompts}" if several else group.series
            panels.setdefault(where, []).append(group)

    def panel(axes: Axes, same: Sequence[Group]) -> None:
        lines: dict[str, list[Group]] = {}
        for group in same:
            lines.setdefault(f"{group.point}{_sampled(group, same)}", []).append(group)
        for number, (label, line) in enumerate(lines.items()):
            line.sort(key=lambda g: g.images_seen)
            images = [g.images_seen for g in line]
            fids = [g.scores["fid"] for g in line]
            axes.plot(images, [fid.value for fid in fids], color=f"C{number % 10}", label=label)
            if any(fid.error is not None for fid in fids):
                low, high = (
                    [fid.value + sign * (fid.error or 0) for fid in fids] for sign in (-1, 1)
                )
                axes.fill_between(images, low, high, color=f"C{number % 10}", alpha=0.2, lw=0)
        best = [g for g in teachers if g.scored_prompts == same[0].scored_prompts]
        best = sorted((g for g in best if "fid" in g.scores), key=lambda g: g.scores["fid"].value)
        for g in best[:1]:
            words = f"teacher's lowest: guidance {g.point}, {steps(g.num_steps)}"
            fid, place = g.scores["fid"].value, axes.get_yaxis_transform()
            axes.axhline(fid, color="black", linestyle="--", lw=1)
            axes.text(0.99, fid, words, fontsize=7, ha="right", va="bottom", transform=place)
        _scale_fid(axes, [g.scores["fid"].value for g in same])
        axes.set_xlabel("images seen")
        axes.legend(loc="upper right", ncols=3, frameon=True, edgecolor="none")

    return _figure(panels, panel)


def over_steps(found: Sequence[Group]) -> Figure | None:
    """Plot the FID over the sampling steps, if any model was scored with several."""
    scored = [g for g in found if "fid" in g.scores]
    if len({(g.series, g.point, g.scored_prompts) for g in scored}) == len(scored):
        return None

    def panel(axes: Axes, same: Sequence[Group]) -> None:
        lines: dict[tuple[str, str], list[Group]] = {}
        for group in same:
            lines.setdefault((group.series, group.point), []).append(group)
        for number, ((series, point), line) in enumerate(lines.items()):
            line.sort(key=lambda g: g.num_steps)
            teacher = is_teacher(line[0])
            axes.errorbar(
                [g.num_steps for g in line],
                [g.scores["fid"].value for g in line],
                yerr=[g.scores["fid"].error or 0 for g in line],
                marker=_MARKERS[number % len(_MARKERS)],
                markersize=4,
                linestyle="--" if teacher else "-",
                color="black" if teacher else f"C{number % 10}",
                capsize=2,
                label=f"{series}, {'guidance ' if teacher else ''}{point}",
            )
        ticks = sorted({g.num_steps for g in same})
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.set_xlabel("steps")
        _scale_fid(axes, [g.scores["fid"].value for g in same])
        axes.legend()

    return _figure(by_prompts(scored), panel)


def by_point(found: Sequence[Group]) -> Figure | None:
    """Plot each score with one row per group."""
    shown = [name for name in _LABELS if any(name in g.scores for g in found)]
    if not shown:
        return None
    labels = [
        f"{g.series}, {g.point}{_sampled(g, found)}"
        + (f", on {Path(g.scored_prompts).stem}" if len(by_prompts(found)) > 1 else "")
        for g in found
    ]
    with rc_context(_STYLE):
        size = (2.2 + 2.2 * len(shown), 1 + 0.22 * len(found))
        figure = Figure(figsize=size, layout="constrained")
        for name, axes in zip(shown, figure.subplots(1, len(shown), squeeze=False)[0], strict=True):
            for place, group in enumerate(found):
                if name in group.scores:
                    value, error = group.scores[name]
                    color = "black" if is_teacher(group) else "C0"
                    axes.errorbar(value, place, xerr=error or 0, fmt="o", ms=4, color=color)
            axes.set_yticks(range(len(found)), labels if name == shown[0] else [""] * len(found))
            axes.set_ylim(len(found) - 0.5, -0.5)
            axes.set_xlabel(_LABELS[name])
    return figure


def _near(found: Sequence[Group]) -> list[Group]:
    """Drop the teacher's groups whose FID is over three times the worst generator's."""
    scored = [g for g in found if "fid" in g.scores]
    fids = [g.scores["fid"].value for g in scored if not is_teacher(g)]
    limit = 3 * max(fids, default=math.inf)
    far = [g for g in scored if is_teacher(g) and g.scores["fid"].value > limit]
    return [g for g in found if g not in far]


def _lines(same: Iterable[Group]) -> dict[str, list[Group]]:
    """Group by line: a series with one number of steps."""
    same = [*same]
    lines: dict[str, list[Group]] = {}
    for group in same:
        lines.setdefault(f"{group.series}{_sampled(group, same)}", []).append(group)
    return lines


def _sampled(group: Group, among: Iterable[Group]) -> str:
    """Return a label's suffix with the number of steps, if it is not the same for all."""
    counts = {g.num_steps for g in among if is_teacher(g) == is_teacher(group)}
    if len(counts) < 2 and not is_teacher(group):
        return ""
    return f", {'' if is_teacher(group) else 'sampled in '}{steps(group.num_steps)}"


def _scale_fid(axes: Axes, values: Sequence[float]) -> None:
    """Use a logarithmic FID axis with plain numbers if values span more than a factor of 4."""
    axes.set_ylabel("FID")
    if min(values) > 0 and max(values) / min(values) > 4:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_locator(NullLocator())


def _figure(
    panels: dict[str, list[Group]], panel: Callable[[Axes, Sequence[Group]], None]
) -> Figure | None:
    """Draw panels side by side, three in a row."""
    if not panels:
        return None
    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    with rc_context(_STYLE):
        figure = Figure(figsize=(4.8 * columns, 3.9 * lines), layout="constrained")
        every = [*figure.subplots(lines, columns, squeeze=False).flat]
        for axes in every[len(panels) :]:
            axes.remove()
        for (title, same), axes in zip(panels.items(), every, strict=False):
            panel(axes, same)
            if len(panels) > 1:
                axes.set_title(title, fontsize=9)
    return figure
