"""Recognise exported generators by the configuration of their scheduler."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from sid_lsg.files.loading import read_json
from sid_lsg.files.sources import SCHEDULER_CONFIG, Source
from sid_lsg.method.choices import Noise
from sid_lsg.method.flow import TIMESTEPS
from sid_lsg.teachers.layout import NUM_STEPS_KEY

STOCK_FLOW_OPTION = "upscale_mode"
"""An option of FlowMatchLCMScheduler alone, which samples generators with 1 / K as last time."""


class Exported(NamedTuple):
    """Sampling settings of an exported generator.

    Attributes:
        t_init: The first timestep.
        num_steps: K, as exported.
        noise: The noise of the later steps.
        shift: Shift of a flow-matching generator's times.
    """

    t_init: int
    num_steps: int
    noise: Noise = "fresh"
    shift: float = 1.0


def exported(scheduler_config: Mapping[str, Any]) -> Exported | None:
    """Return the sampling settings that a scheduler's configuration holds.

    Returns:
        None if `export.folder` did not make the scheduler.
    """
    num_steps, betas = scheduler_config.get("num_steps"), scheduler_config.get("trained_betas")
    noise = scheduler_config.get("noise", "fresh")
    if num_steps is not None and (t_init := scheduler_config.get("t_init")) is not None:
        return Exported(t_init, num_steps, noise, scheduler_config.get("shift", 1.0))
    if STOCK_FLOW_OPTION in scheduler_config:
        steps = round(1 / (scheduler_config.get("shift_terminal") or 1))
        return Exported(TIMESTEPS - 1, scheduler_config.get(NUM_STEPS_KEY, steps))
    trailing = scheduler_config.get("timestep_spacing") == "trailing"
    if betas is None or not (trailing or num_steps is not None):
        return None
    return Exported(len(betas) - 1, num_steps or 1, noise)


def read_exported(source: Source) -> Exported | None:
    """Read the sampling settings of a folder or Hub id; None if it is not a generator."""
    try:
        config = read_json(source, SCHEDULER_CONFIG)
    except (OSError, ValueError):
        return None
    return exported(config) if config else None
