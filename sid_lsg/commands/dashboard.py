"""`dashboard`: save Weights & Biases workspace views of runs and sweeps."""

from sid_lsg.messages.errors import UsageError


def dashboard(
    project: str = "sid-lsg", entity: str | None = None, protocol: str = "clip_2k"
) -> None:
    """Save two workspace views in a W&B project: one for a run and one for a sweep.

    The views show the curves, scores, health, images, speed and memory that a fit with
    --trainer.logger sid_lsg.loggers.WandbLogger logs. Saving again adds new views.

    Args:
        project: W&B project of the runs.
        entity: User or team; by default the account's default.
        protocol: The end of the scores' names, which states the protocol and the number of images:
            clip_2k for fid_clip_2k and clip_score_clip_2k.

    Raises:
        UsageError: If wandb-workspaces is not installed, or W&B does not accept the views.
    """
    try:
        import wandb

        from sid_lsg.loggers.dashboard import run_view, sweep_view
    except ImportError as error:
        raise UsageError(
            "dashboard needs wandb-workspaces. Install it: pip install 'sid-lsg[dashboard]'."
        ) from error
    try:
        owner = entity or wandb.Api().default_entity
        if not owner:
            raise UsageError("--entity: W&B knows no default entity. Give a user or team.")
        for view in (run_view(project, owner, protocol), sweep_view(project, owner, protocol)):
            view.save()
    except (wandb.errors.Error, OSError, ValueError) as error:
        found = " ".join(str(error).split()).rstrip(".")
        raise UsageError(
            f"--project {project}: W&B did not save the views ({found}). `wandb login` stores an "
            "API key; the project must exist, so log a run first."
        ) from error
