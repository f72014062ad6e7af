"""Options of the method: times, steps, weights of the losses, prompt dropout."""

import math
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, get_args

from sid_lsg.messages.checks import refuse
from sid_lsg.messages.errors import UsageError
from sid_lsg.method.choices import Noise, Objective, StepTraining, Weighting

if TYPE_CHECKING:
    from sid_lsg.method.guidance import Kappas
    from sid_lsg.method.phases import Recipe
    from sid_lsg.method.schedule import Schedule

MOST_FAKE_STEPS = 1000


@dataclass(frozen=True)
class Method:
    """Options of the method, directly under `--model.`.

    None means the teacher's default, which `of_teacher` fills in.

    Attributes:
        alpha: Weight of the second term of the generator's loss.
        t_init: The first timestep at which the generator is evaluated.
        tmin: Smallest timestep at which the losses are evaluated.
        tmax: Largest timestep at which the losses are evaluated, plus one.
        num_steps: Network evaluations (NFE) of the generator per image.
        prompt_dropout: Probability of replacing a prompt by the empty one in phase 1.
        micro_batch_size: Samples that go through the networks at a time; None for all at once.
        step_training: The generator's steps that gradients flow through.
        noise: The noise of the generator's later steps.
        weighting: Weighting of the generator's loss.
        fake_steps: Optimizer steps of the fake score per step of the generator.
        objective: The generator's loss.
    """

    alpha: float = 1.0
    t_init: int | None = None
    tmin: int = 20
    tmax: int = 980
    num_steps: int = 1
    prompt_dropout: float | None = None
    micro_batch_size: int | None = None
    step_training: StepTraining | None = None
    noise: Noise = "fresh"
    weighting: Weighting | None = None
    fake_steps: int = 1
    objective: Objective = "sid"

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
        if self.prompt_dropout is not None and not 0 <= self.prompt_dropout <= 1:
            refuse("model.prompt_dropout", self.prompt_dropout, "a probability, 0 to 1")
        if self.micro_batch_size is not None and self.micro_batch_size < 1:
            refuse("model.micro_batch_size", self.micro_batch_size, "at least 1")
        if not 1 <= self.fake_steps <= MOST_FAKE_STEPS:
            refuse("model.fake_steps", self.fake_steps, f"1 to {MOST_FAKE_STEPS}")
        for name, choices in (
            ("step_training", get_args(StepTraining)),
            ("noise", get_args(Noise)),
            ("weighting", get_args(Weighting)),
            ("objective", get_args(Objective)),
        ):
            if (value := getattr(self, name)) not in (None, *choices):
                refuse(f"model.{name}", value, f"one of {', '.join(choices)}")

    @classmethod
    def of(cls, model: Any) -> "Method":
        """Read the options from the `model` section of a configuration, also of an earlier run.

        Raises:
            UsageError: For the first value out of range.
        """
        return cls(**{f.name: model.get(f.name, f.default) for f in fields(cls)})

    def of_teacher(self, schedule: "Schedule", sampling: bool = False) -> "Method":
        """Return the options with the teacher's defaults for those that were left out.

        Args:
            schedule: The teacher's schedule.
            sampling: Validate only what sampling needs, not the times of the losses.

        Raises:
            UsageError: If a timestep is not one of the teacher's.
        """
        defaults = schedule.defaults._asdict()
        missing = {k: v for k, v in defaults.items() if getattr(self, k) is None}
        found, timesteps = replace(self, **missing), len(schedule)
        found._check_generator(timesteps)
        if sampling:
            return found
        if self.tmax > timesteps:
            refuse("model.tmax", self.tmax, f"at most {timesteps}, the teacher's timesteps")
        if schedule.time_dtype.is_floating_point and (self.tmin, self.tmax) != (20, 980):
            raise UsageError(
                "--model.tmin and --model.tmax limit integer timesteps, which a flow-matching "
                "teacher does not have. Leave them out, or set --model.flow.location and "
                "--model.flow.scale."
            )
        return found

    def recipe(self, kappas: "Kappas", generator_scale: float = 1.0) -> "Recipe":
        """Return the options that define the phases, which `of_teacher` has filled in."""
        from sid_lsg.method.phases import Recipe

        assert self.t_init is not None
        return Recipe(
            kappas,
            self.t_init,
            self.num_steps,
            self.noise,
            self.step_training or "all",
            self.alpha,
            self.weighting or "sid",
            generator_scale,
            self.objective,
        )

    def _check_generator(self, timesteps: int) -> None:
        assert self.t_init is not None
        if not 1 <= self.t_init < timesteps:
            wanted = f"1 to {timesteps - 1}, a timestep of the teacher"
            refuse("model.t_init", self.t_init, wanted)
        if self.num_steps > self.t_init:
            refuse("model.num_steps", self.num_steps, f"at most --model.t_init ({self.t_init})")
