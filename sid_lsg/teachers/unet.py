"""Base class of Stable Diffusion 1, 2 and XL: a UNet, discrete timesteps, a KL autoencoder."""

from typing import Any

from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from torch import nn

from sid_lsg.messages.checks import beside
from sid_lsg.teachers.autoencoder import vae_factor
from sid_lsg.teachers.diffusion import DiffusionTeacher
from sid_lsg.teachers.unet_parts import latent_size


class UNetTeacher(DiffusionTeacher):
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
        self.set_schedule(scheduler)
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
