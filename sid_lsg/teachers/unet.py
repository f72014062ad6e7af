"""Base class of Stable Diffusion 1, 2 and XL: a UNet, discrete timesteps, a KL autoencoder."""

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler, EulerDiscreteScheduler, UNet2DConditionModel
from torch import nn

from sid_lsg.messages.checks import beside
from sid_lsg.method.schedule import DiscreteSchedule
from sid_lsg.teachers.assembled import AssembledTeacher
from sid_lsg.teachers.autoencoder import vae_factor
from sid_lsg.teachers.unet_parts import latent_size

_LEAST_SIGNAL = 2.0**-24  # last abar under zero terminal SNR, as in diffusers' Euler scheduler


class UNetTeacher(AssembledTeacher):
    """A latent diffusion model with a UNet that predicts at integer timesteps."""

    network_name = "unet"
    network: UNet2DConditionModel
    vae: AutoencoderKL

    def __init__(
        self,
        unet: UNet2DConditionModel,
        vae: AutoencoderKL,
        scheduler: DDPMScheduler,
        resolution: int | None,
        option: str,
    ) -> None:
        """Set the network, the autoencoder, the schedule and the sizes.

        Args:
            unet: The denoiser.
            vae: The autoencoder.
            scheduler: Gives the betas and the prediction type.
            resolution: Pixels per side of an image; by default the UNet's.
            option: The option that named the model, for messages.

        Raises:
            UsageError: If the networks cannot take the resolution.
        """
        super().__init__()
        self.network = unet
        self.vae = vae
        self.scheduler_config = dict(scheduler.config)
        self.schedule = DiscreteSchedule.from_alphas_cumprod(
            scheduler.alphas_cumprod, scheduler.config.prediction_type
        )
        height, width = latent_size(unet, vae, resolution, beside(option, "resolution"))
        self.latent_shape = (unet.config.in_channels, height, width)
        self.image_size = (height * vae_factor(vae), width * vae_factor(vae))
        if resolution is not None:
            # So that exported generators sample at this resolution by default.
            unet.register_to_config(sample_size=self.latent_shape[1])

    def end_of_encoder(self, network: nn.Module) -> nn.Module:
        """Return the UNet's last down block; the middle block follows."""
        down_blocks: Any = network.down_blocks
        return down_blocks[-1]

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
