"""The run of a W&B sweep that this process is."""

import os


def sweep_run() -> str | None:
    """Return the id of the run that a W&B sweep agent has started this process for."""
    return os.environ.get("WANDB_RUN_ID") if os.environ.get("WANDB_SWEEP_ID") else None
