"""Draw what the dashboard of a sweep shows, from the rows of the guidance study.

`python docs/dashboard.py` writes docs/guide/dashboard.png from results/kappa/.
"""

import csv
import json
from pathlib import Path
from typing import Any

from matplotlib import colormaps
from matplotlib.figure import Figure

DOCS = Path(__file__).parent
KAPPAS = [f"kappa_{i}" for i in (1, 2, 3, 4)]
FID, CLIP = "fid_clip_2k", "clip_score_clip_2k"
COLUMNS = [*KAPPAS, CLIP, FID]


def points() -> tuple[list[dict[str, float]], list[dict[str, float]]]:
    """Return the last scores of every run with its kappas, and the teacher's scores."""
    kappas = {}
    for line in (DOCS.parent / "results/kappa/runs.jsonl").read_text().splitlines():
        run: dict[str, Any] = json.loads(line)
        kappas[run["run"]] = dict(zip(KAPPAS, run["kappas"], strict=True))
    runs, teacher = [], []
    with (DOCS.parent / "results/kappa/evaluations.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            scores = {name: float(row[name]) for name in (FID, CLIP)}
            if row["model"] == "teacher":
                teacher.append(scores)
            elif row["final"] == "1" and row["model"] in kappas:
                runs.append(kappas[row["model"]] | scores)
    return runs, teacher


def drawn() -> Figure:
    """Return the figure: parallel coordinates, and FID against the CLIP score."""
    runs, teacher = points()
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[3, 2])
    ranges = {name: sorted({run[name] for run in runs}) for name in COLUMNS}
    worst, best = ranges[FID][-1], ranges[FID][0]
    for run in runs:
        heights = [
            (run[name] - ranges[name][0]) / (ranges[name][-1] - ranges[name][0]) for name in COLUMNS
        ]
        colour = colormaps["viridis_r"]((run[FID] - best) / (worst - best))
        left.plot([*heights[:-1], 1 - heights[-1]], color=colour, alpha=0.7)
        right.plot(run[CLIP], run[FID], "o", color=colour)
    for place, name in enumerate(COLUMNS):
        low, high = ranges[name][0], ranges[name][-1]
        bottom, top = (high, low) if name == FID else (low, high)  # the best FID is at the top
        left.annotate(f"{bottom:.3g}", (place, -0.06), ha="center", va="top")
        left.annotate(f"{top:.3g}", (place, 1.06), ha="center")
    left.set_xticks(range(len(COLUMNS)), [*KAPPAS, "CLIP score", "FID"])
    left.set_yticks([])
    left.set_ylim(-0.15, 1.15)
    left.grid(axis="x")
    left.set_title("options and scores")
    path = sorted(teacher, key=lambda scores: scores[CLIP])
    right.plot([p[CLIP] for p in path], [p[FID] for p in path], "k.--", label="teacher, 25 steps")
    right.set_xlabel("CLIP score")
    right.set_ylabel("FID")
    right.set_yscale("log")
    right.legend()
    right.set_title("FID against CLIP score")
    return figure


if __name__ == "__main__":
    drawn().savefig(DOCS / "guide/dashboard.png", dpi=110, metadata={"Software": None})
