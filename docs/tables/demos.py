"""The tables that the demos print, and their teachers over guidance."""

from collections.abc import Iterable

from docs.tables.blocks import SCORES, cells, named, stored, table


@named("demo")
def demo() -> str:
    """Return the scores that `make demo` printed."""
    rows = (
        ("teacher, 25 steps", "teacher_", ""),
        ("untrained, 1 step", "initial_", ""),
        ("SiD-LSG, 1 step", "", ""),
    )
    return comparison("demo_latest", rows)


@named("demo flow")
def demo_flow() -> str:
    """Return the scores that the demo of the flow-matching teacher printed."""
    rows = (
        ("teacher, 28 steps", "teacher_", ""),
        ("untrained, 4 steps", "initial_", ""),
        ("SiD-LSG, 1 step", "", "_1_step"),
        ("SiD-LSG, 2 steps", "", "_2_steps"),
        ("SiD-LSG, 4 steps", "", ""),
    )
    return comparison("demo_flow", rows)


@named("guidance flow")
def guidance_flow() -> str:
    """Return the scores of the flow-matching teacher at several guidance scales."""
    names = [f"{score}_clip_500" for score in ("fid", "clip_score", "precision", "recall")]
    rows = [
        [f"{row['guidance']:g}", *(f"{row[name]:.3f}" for name in names)]
        for row in stored("demo_flow_guidance")
    ]
    return table(["guidance", *SCORES], rows)


def comparison(run: str, rows: Iterable[tuple[str, str, str]]) -> str:
    """Return the table that a run printed: (name, prefix and suffix of its scores) per row."""
    summary, cells = stored(run), []
    keys = [f"{score}_clip_2k" for score in ("fid", "clip_score", "precision", "recall")]
    for name, prefix, suffix in rows:
        scores = [f"{summary[f'{prefix}{key}{suffix}']:.3f}" for key in keys]
        seconds = f"{summary[f'{prefix}seconds_per_image{suffix}']:.4f}"
        nfe = str(summary[f"{prefix}evaluations_per_image{suffix}"])
        cells.append([name, *scores, seconds, nfe])
    return table(["", *SCORES, "s/image", "NFE"], cells)


@named("guidance")
def guidance() -> str:
    """Return the teacher's scores by guidance scale."""
    rows = []
    for row in cells("results/guidance.md"):
        if row[0].startswith("guidance "):
            scores = [f"{float(row[place]):.3f}" for place in (1, 7, 3, 4)]
            rows.append([row[0].removeprefix("guidance "), *scores])
    return table(["guidance", *SCORES], rows)
