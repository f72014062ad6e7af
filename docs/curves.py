"""Draw the losses of a healthy and of a failing run, for the answers on training.

`python docs/curves.py` writes docs/answers/losses.png from results/losses/. The runs were made by

    sid-lsg fit --config configs/demo.yaml --trainer.max_steps 100 --trainer.log_every_n_steps 1

and for the failing one `--model.optimizer_generator.init_args.lr 0.05`, 1000 times the demo's.
"""

import csv
from pathlib import Path

from matplotlib.figure import Figure

DOCS = Path(__file__).parent
RUNS = {"healthy": "tab:blue", "failing": "tab:red"}
PANELS = {
    "loss_generator": "generator's loss",
    "loss_fake": "fake score's loss",
    "grad_norm_generator": "generator's gradient norm",
    "update_ratio_generator": "generator's update-to-weight ratio",
}


def curve(run: str, name: str) -> tuple[list[float], list[float]]:
    """Return images seen and the values of a column, where it has one."""
    with (DOCS.parent / "results/losses" / f"{run}.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row[name]]
    return [float(row["images_seen"]) for row in rows], [float(row[name]) for row in rows]


def drawn() -> Figure:
    """Return the figure: a panel for each column, a line for each run."""
    figure = Figure(figsize=(9, 6), layout="constrained")
    for axes, (name, title) in zip(figure.subplots(2, 2).flat, PANELS.items(), strict=True):
        for run, colour in RUNS.items():
            axes.plot(*curve(run, name), color=colour, label=run)
        axes.set_yscale("symlog" if name == "loss_generator" else "log")
        axes.set_title(title)
        axes.set_xlabel("images seen")
        axes.grid(alpha=0.3)
    figure.axes[0].legend()
    return figure


if __name__ == "__main__":
    drawn().savefig(DOCS / "answers/losses.png", dpi=120, metadata={"Software": None})
