"""The W&B sweep run of this process."""

import os


def sweep_run() -> str | None:
    """Return the run id that a W&B sweep agent gave this process; None outside a sweep."""
    return os.environ.get("WANDB_RUN_ID") if os.environ.get("WANDB_SWEEP_ID") else None
