"""Base class of diffusion teachers: integer timesteps, betas, diffusers' discrete schedulers."""

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import DDPMScheduler, EulerDiscreteScheduler

from sid_lsg.method.schedule import DiscreteSchedule
from sid_lsg.teachers.assembled import AssembledTeacher

_LEAST_SIGNAL = 2.0**-24  # last abar under zero terminal SNR, as in diffusers' Euler scheduler


class DiffusionTeacher(AssembledTeacher):
    """A latent diffusion model whose network predicts at integer timesteps."""

    def set_schedule(self, scheduler: DDPMScheduler) -> None:
        """Take the betas and the prediction type from the model's scheduler."""
        self.scheduler_config = dict(scheduler.config)
        self.schedule = DiscreteSchedule.from_alphas_cumprod(
            scheduler.alphas_cumprod, scheduler.config.prediction_type
        )

    def predicted_by(self, scheduler_config: Mapping[str, Any]) -> str:
        """Return a scheduler's prediction_type; diffusers' default is epsilon."""
        return str(scheduler_config.get("prediction_type", "epsilon"))

    def scheduler_options(self, t_init: int) -> dict[str, Any]:
        """Return the first t_init + 1 betas and the prediction type."""
        betas = DDPMScheduler.from_config(self.scheduler_config).betas[: t_init + 1]
        return {
            "num_train_timesteps": t_init + 1,
            "trained_betas": betas.tolist(),
            "prediction_type": self.schedule.prediction_type,
        }

    def one_step_scheduler(self, t_init: int) -> EulerDiscreteScheduler:
        """Return an Euler scheduler over the first t_init + 1 betas.

        A generator's input is sigma_t z at t = t_init, and its output is the x_0-estimate there:
        an Euler step from the last of these betas to zero noise.
        """
        options = self.scheduler_options(t_init)
        betas = torch.tensor(options["trained_betas"])
        if betas[-1] == 1:  # zero terminal SNR, where an Euler step is infinite
            betas[-1] = 1 - _LEAST_SIGNAL / (1 - betas[:-1]).prod()
        options["trained_betas"] = betas.tolist()
        return EulerDiscreteScheduler(
            timestep_spacing="trailing",
            steps_offset=1,  # unused by this spacing; diffusers warns about any other value
            **options,
        )
