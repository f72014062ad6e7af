"""Fit a power law to FID over images seen, for docs/results/law.md.

    FID(n) = floor + rise (n / 100,000)^-exponent

`python docs/law.py` writes docs/results/law.png from results/law/.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from scipy.optimize import least_squares

from sid_lsg.study.results import TEACHER, read_rows

DOCS = Path(__file__).parent
RESULTS = DOCS.parent / "results/law"
FID = "fid_clip_2k"
UNIT, FIRST = 100_000, 12_800  # the law begins where the start of the training has ended
BLOCK, DRAWS = 4, 200
FEWEST = 2 * BLOCK  # points of the longest run of a law
COLOURS = ("tab:blue", "tab:orange", "tab:green", "tab:red")

Points = Sequence[tuple[float, float]]
"""Images seen and FID of one run, in order."""


class Law(NamedTuple):
    """A fitted power law.

    Attributes:
        floor: FID after infinitely many images.
        rise: FID above the floor at 100,000 images.
        exponent: The exponent.
    """

    floor: float
    rise: float
    exponent: float

    def at(self, images: float | np.ndarray) -> np.ndarray:
        """Return FID after some number of images."""
        return self.floor + self.rise * (np.asarray(images) / UNIT) ** -self.exponent

    def images(self, fid: float) -> float:
        """Return the number of images at which FID falls to a value; infinite at the floor."""
        if fid <= self.floor:
            return float("inf")
        return UNIT * (self.rise / (fid - self.floor)) ** (1 / self.exponent)


def fitted(runs: Sequence[Points], near: Law | None = None) -> Law:
    """Return the law with the least squared errors of log FID, with a floor of at least 0.

    Args:
        runs: The points of one run per seed.
        near: Where the search begins; by default at several places.
    """
    images, fid = np.concatenate(runs).T

    def errors(values: np.ndarray) -> np.ndarray:
        return np.log(Law(*values).at(images)) - np.log(fid)

    bounds = ([0.0, 1e-4, 0.05], [float(fid.min()), 10.0, 3.0])
    starts = [(floor * fid.min(), 0.2, c) for floor in (0.1, 0.5, 0.9) for c in (0.3, 0.8)]
    if near is not None:
        starts = [tuple(np.clip(near, *(np.array(bound) for bound in bounds)))]
    found = [least_squares(errors, start, bounds=bounds) for start in starts]
    return Law(*min(found, key=lambda result: result.cost).x)


def resampled(runs: Sequence[Points]) -> list[Law]:
    """Return laws of bootstrap samples, which show how well the points determine the law.

    Neighbouring errors of a run are correlated, since its EMA changes slowly. So blocks of them are
    drawn, from all runs alike.
    """
    law, draw = fitted(runs), np.random.default_rng(0)
    errors = [np.log([fid for _, fid in run]) - np.log(law.at([n for n, _ in run])) for run in runs]
    blocks = [each[i : i + BLOCK] for each in errors for i in range(len(each) - BLOCK + 1)]

    def remade(run: Points) -> Points:
        images = np.array([n for n, _ in run])
        drawn = draw.integers(0, len(blocks), -(-len(run) // BLOCK))
        error = np.concatenate([blocks[i] for i in drawn])[: len(run)]
        return [*zip(images, law.at(images) * np.exp(error), strict=True)]

    return [fitted([remade(run) for run in runs], law) for _ in range(DRAWS)]


def series() -> dict[str, list[Points]]:
    """Return the points of each series that has enough of them, by seed."""
    found: dict[str, dict[int, list[tuple[float, float]]]] = {}
    for row in read_rows([str(RESULTS)]):
        if row["kind"] != TEACHER and row["images_seen"] >= FIRST:
            runs = found.setdefault(f"{row['series']}, {row['point']}", {})
            runs.setdefault(row["seed"], []).append((row["images_seen"], row[FID]))
    return {
        label: [sorted(run) for run in runs.values() if len(run) >= BLOCK]
        for label, runs in found.items()
        if max(map(len, runs.values())) >= FEWEST
    }


def teachers() -> dict[float, float]:
    """Return the teacher's FID at each guidance scale."""
    rows = read_rows([str(RESULTS)])
    return {row["guidance"]: row[FID] for row in rows if row["kind"] == TEACHER}


def interval(values: Sequence[float]) -> str:
    """Format the 90% interval of bootstrap values."""
    low, high = np.quantile(values, (0.05, 0.95), method="inverted_cdf")
    return f"{_short(low)} to {_short(high)}"


def _short(value: float) -> str:
    if value == float("inf"):
        return "never"
    return f"{value:.2f}" if value < 1000 else f"{round(value, -4):,.0f}"


def drawn() -> Figure:
    """Return the figure: evaluations, fitted laws with 90% bands, and the teacher's FID."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    images = np.geomspace(FIRST, 2_000_000, 100)
    for colour, (label, runs) in zip(COLOURS, series().items(), strict=False):
        seeds = f"{label} ({len(runs)} seeds)" if len(runs) > 1 else label
        axes.plot(*np.concatenate(runs).T, "o", color=colour, markersize=3, label=seeds)
        axes.plot(images, fitted(runs).at(images), color=colour)
        curves = [law.at(images) for law in resampled(runs)]
        low, high = np.quantile(curves, (0.05, 0.95), axis=0)
        axes.fill_between(images, low, high, color=colour, alpha=0.15)
    known = teachers()
    for scale in (1.0, min(known, key=lambda scale: known[scale])):
        axes.axhline(known[scale], color="black", linestyle="--", linewidth=0.8)
        axes.annotate(f"teacher, guidance {scale:g}", (FIRST, known[scale]), (0, 3),
                      textcoords="offset points", fontsize=8)  # fmt: skip
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("images seen")
    axes.set_ylabel("FID")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


if __name__ == "__main__":
    drawn().savefig(DOCS / "results/law.png", dpi=120, metadata={"Software": None})
