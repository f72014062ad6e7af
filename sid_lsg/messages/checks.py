"""Values out of range, refused by the name of the option."""

import math
from typing import Any

from sid_lsg.messages.errors import UsageError


def refuse(option: str, value: Any, wanted: str) -> None:
    """Raise the message for a value that an option cannot take."""
    raise UsageError(f"--{option} must be {wanted}, got {value!r}.")


def beside(option: str, name: str) -> str:
    """Name another option of an option's command: model.teacher's resolution, and model's."""
    section, dot, _ = option.rpartition(".")
    return f"{section}{dot}{name}"


def check_teacher_guidance(option: str, scale: float) -> None:
    """Refuse a scale below 1 for sampling a teacher, where diffusers does not guide at all.

    Raises:
        UsageError: If it is one, or not finite.
    """
    if not 1 <= scale < math.inf:
        refuse(option, scale, "a finite number of at least 1, which means no guidance")


def check_method(options: Any) -> None:
    """Check the method's numbers, as far as they do not depend on the teacher.

    Args:
        options: Anything with the attributes of `SiDLSG`.

    Raises:
        UsageError: For the first value out of range.
    """
    if not math.isfinite(options.alpha):
        refuse("model.alpha", options.alpha, "a finite number")
    if options.num_steps < 1:
        refuse("model.num_steps", options.num_steps, "at least 1")
    if options.tmin < 0:
        refuse("model.tmin", options.tmin, "at least 0")
    if options.tmin >= options.tmax:
        refuse("model.tmin", options.tmin, f"smaller than --model.tmax ({options.tmax})")
    if not 0 <= options.prompt_dropout <= 1:
        refuse("model.prompt_dropout", options.prompt_dropout, "a probability, 0 to 1")
    if options.micro_batch_size is not None and options.micro_batch_size < 1:
        refuse("model.micro_batch_size", options.micro_batch_size, "at least 1")
    for name in ("ema_halflife_images", "ema_rampup_ratio"):
        if not 0 <= getattr(options, name) < math.inf:
            refuse(f"model.{name}", getattr(options, name), "a finite number of at least 0")
    clip = options.gradient_clip_val
    if clip is not None and not (math.isfinite(clip) and clip > 0):
        refuse("model.gradient_clip_val", clip, "a positive number")


def check_timesteps(options: Any, timesteps: int) -> None:
    """Check the timesteps against the length of the teacher's schedule.

    Raises:
        UsageError: For the first value out of range.
    """
    if not 1 <= options.t_init < timesteps:
        refuse("model.t_init", options.t_init, f"1 to {timesteps - 1}, a timestep of the teacher")
    if options.num_steps > options.t_init:
        refuse("model.num_steps", options.num_steps, f"at most --model.t_init ({options.t_init})")
    if options.tmax > timesteps:
        refuse("model.tmax", options.tmax, f"at most {timesteps}, the teacher's timesteps")
