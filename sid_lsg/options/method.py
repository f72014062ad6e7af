"""Options of the method: timesteps, alpha, network evaluations per image, prompt dropout."""

import math
from dataclasses import dataclass, fields
from typing import Any

from sid_lsg.messages.checks import refuse


@dataclass(frozen=True)
class Method:
    """Numbers that define the method: the options directly under `--model.`.

    Attributes:
        alpha: Weight of the second term of the generator's loss.
        t_init: The timestep at which the generator is evaluated.
        tmin: Smallest timestep at which the losses are evaluated.
        tmax: Largest timestep at which the losses are evaluated, plus one.
        num_steps: Network evaluations (NFE) of the generator per image.
        prompt_dropout: Probability of replacing a prompt by the empty one in phase 1.
        micro_batch_size: Samples that go through the networks at a time; None for all at once.
    """

    alpha: float = 1.0
    t_init: int = 625
    tmin: int = 20
    tmax: int = 980
    num_steps: int = 1
    prompt_dropout: float = 0.1
    micro_batch_size: int | None = None

    def __post_init__(self) -> None:
        """Validate the values that do not depend on the teacher.

        Raises:
            UsageError: For the first value out of range.
        """
        if not math.isfinite(self.alpha):
            refuse("model.alpha", self.alpha, "a finite number")
        if self.num_steps < 1:
            refuse("model.num_steps", self.num_steps, "at least 1")
        if self.tmin < 0:
            refuse("model.tmin", self.tmin, "at least 0")
        if self.tmin >= self.tmax:
            refuse("model.tmin", self.tmin, f"smaller than --model.tmax ({self.tmax})")
        if not 0 <= self.prompt_dropout <= 1:
            refuse("model.prompt_dropout", self.prompt_dropout, "a probability, 0 to 1")
        if self.micro_batch_size is not None and self.micro_batch_size < 1:
            refuse("model.micro_batch_size", self.micro_batch_size, "at least 1")

    @classmethod
    def of(cls, model: Any) -> "Method":
        """Read the options from the `model` section of a configuration.

        Raises:
            UsageError: For the first value out of range.
        """
        return cls(**{field.name: model[field.name] for field in fields(cls)})

    def check_timesteps(self, timesteps: int) -> None:
        """Validate the timesteps against the length of the teacher's schedule.

        Raises:
            UsageError: For the first value out of range.
        """
        if not 1 <= self.t_init < timesteps:
            wanted = f"1 to {timesteps - 1}, a timestep of the teacher"
            refuse("model.t_init", self.t_init, wanted)
        if self.num_steps > self.t_init:
            refuse("model.num_steps", self.num_steps, f"at most --model.t_init ({self.t_init})")
        if self.tmax > timesteps:
            refuse("model.tmax", self.tmax, f"at most {timesteps}, the teacher's timesteps")
