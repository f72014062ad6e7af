"""Runs of the tiny pipeline with checkpoints."""

from tests.helpers.checkpoint_runs import command, copied, empty, no_room, run, slow_writes

__all__ = ["command", "copied", "empty", "no_room", "run", "slow_writes"]
