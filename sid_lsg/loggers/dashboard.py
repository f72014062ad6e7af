"""The Weights & Biases workspace views of runs and of sweeps, defined in code.

The views are built without a network; `Workspace.save` sends one. Panels name the keys that
`WandbLogger` receives, so a view shows every run of this project.
"""

from typing import Any

from wandb_workspaces import workspaces as ws
from wandb_workspaces.reports.v2 import (
    Config,
    LinePlot,
    MediaBrowser,
    Metric,
    ParallelCoordinatesPlot,
    ParallelCoordinatesPlotColumn,
    ScatterPlot,
    SummaryMetric,
)

X_AXIS = "images_seen"
KAPPAS = tuple(f"kappa_{i}" for i in (1, 2, 3, 4))
_SCORES = {
    "FID": "fid", "CLIP score": "clip_score", "precision": "precision", "recall": "recall",
    "density": "density", "coverage": "coverage",
}  # fmt: skip
_HEALTH = {
    "diversity within prompts": "diversity_within",
    "diversity across prompts": "diversity_across",
    "CLIP score over the teacher's": "clip_ratio",
    "retrieval": "retrieval",
}


def run_view(project: str, entity: str, protocol: str) -> ws.Workspace:
    """Build the view of one run: scores, losses, gradients, health, images, speed and memory.

    Args:
        project: W&B project.
        entity: User or team.
        protocol: The end of the scores' names, such as "clip_2k" of `fid_clip_2k`.
    """
    sections = {
        "Scores": [_line(title, f"{name}_{protocol}") for title, name in _SCORES.items()],
        "Losses": [
            _line("loss of the fake score", "loss_fake"),
            _line("loss of the generator", "loss_generator"),
            _line("weight of the generator's loss", "weight", log_y=True),
        ],
        "Gradients and updates": [
            _line("gradient norms", "grad_norm_fake", "grad_norm_generator", log_y=True),
            _line("update-to-weight", "update_ratio_fake", "update_ratio_generator", log_y=True),
            _line("learning rates", "lr_fake", "lr_generator"),
            _line("non-finite gradients", "nonfinite_gradients"),
            _line("skipped samples", "skipped_samples"),
        ],
        "Health": [_line(title, f"health/{name}") for title, name in _HEALTH.items()],
        "Images": [
            MediaBrowser(title="grids", media_keys=["grid"], gallery_axis="step"),
            MediaBrowser(title="comparison", media_keys=["comparison"]),
        ],
        "Speed and memory": [
            _line("images per second", "images_per_s"),
            _line("peak memory (GiB)", "peak_memory_gib"),
        ],
    }  # fmt: skip
    return _workspace(project, entity, "SiD-LSG: run", sections)


def sweep_view(project: str, entity: str, protocol: str) -> ws.Workspace:
    """Build the view of a sweep: options against scores, FID against CLIP score, and grids.

    The arguments are those of `run_view`.
    """
    fid, clip = f"fid_{protocol}", f"clip_score_{protocol}"
    options = {
        **{kappa: kappa for kappa in KAPPAS},
        "alpha": "model.alpha",
        "steps": "model.num_steps",
        "learning rate (fake)": "model.optimizer_fake.init_args.lr",
        "learning rate (generator)": "model.optimizer_generator.init_args.lr",
    }
    columns = [
        ParallelCoordinatesPlotColumn(metric=Config(key), display_name=name)
        for name, key in options.items()
    ]
    columns += [
        ParallelCoordinatesPlotColumn(metric=SummaryMetric(clip), display_name="CLIP score"),
        ParallelCoordinatesPlotColumn(metric=SummaryMetric(fid), display_name="FID", inverted=True),
    ]
    teacher = {"x": SummaryMetric(f"teacher_{clip}"), "y": SummaryMetric(f"teacher_{fid}")}
    sections = {
        "Options and scores": [
            ParallelCoordinatesPlot(title="options and scores", columns=columns),
            ScatterPlot(
                title="FID against CLIP score", x=SummaryMetric(clip), y=SummaryMetric(fid)
            ),
            ScatterPlot(title="the teacher's FID against its CLIP score", **teacher),
        ],
        "Scores over images seen": [_line("FID", fid), _line("CLIP score", clip)],
        "Grids": [MediaBrowser(title="grids of the runs", media_keys=["grid"], gallery_axis="run")],
    }
    view = _workspace(project, entity, "SiD-LSG: sweep", sections)
    view.runset_settings.order = [ws.Ordering(ws.Summary(fid), ascending=True)]
    return view


def _line(title: str, *keys: str, log_y: bool | None = None) -> LinePlot:
    return LinePlot(title=title, x=X_AXIS, y=[Metric(key) for key in keys], log_y=log_y)


def _workspace(
    project: str, entity: str, name: str, sections: dict[str, list[Any]]
) -> ws.Workspace:
    shown = [
        ws.Section(name=title, panels=panels, is_open=True) for title, panels in sections.items()
    ]
    settings = ws.WorkspaceSettings(x_axis=X_AXIS)
    return ws.Workspace(
        entity=entity, project=project, name=name, sections=shown, settings=settings
    )
