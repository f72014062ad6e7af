"""Check that a UNet, an autoencoder and text encoders fit together; choose the latents' size."""

from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel

from sid_lsg.messages.errors import UsageError
from sid_lsg.method.schedule import PREDICTION_TYPES
from sid_lsg.teachers.autoencoder import vae_factor


def check_parts(
    unet: UNet2DConditionModel,
    vae: AutoencoderKL,
    features: int,
    scheduler: DDPMScheduler,
    option: str,
    problem: str | None,
    wanted: str,
) -> None:
    """Reject parts that load but do not form a model.

    Args:
        unet: The denoiser.
        vae: The autoencoder.
        features: Features per token that the text encoders output.
        scheduler: Gives the prediction type.
        option: The option that named the model, for messages.
        problem: What the family itself finds wrong, if anything.
        wanted: What to give instead.

    Raises:
        UsageError: If the parts do not fit together.
    """
    if unet.config.in_channels != vae.config.latent_channels:
        problem = (
            f"its UNet takes {unet.config.in_channels} channels and its VAE's latents have "
            f"{vae.config.latent_channels} (an inpainting or upscaling model?)"
        )
    elif unet.config.cross_attention_dim != features:
        problem = (
            f"its UNet attends to {unet.config.cross_attention_dim} features and its text encoder "
            f"outputs {features}"
        )
    elif not problem and scheduler.config.prediction_type not in PREDICTION_TYPES:
        problem = (
            f"its scheduler's prediction_type is {scheduler.config.prediction_type!r}, not one of "
            f"{', '.join(PREDICTION_TYPES)}"
        )
    if problem:
        raise UsageError(f"--{option}: {problem}. Give {wanted}.")


def latent_size(
    unet: UNet2DConditionModel, vae: AutoencoderKL, resolution: int | None, option: str
) -> tuple[int, int]:
    """Return the latents' height and width, which every level of the UNet must be able to halve.

    Raises:
        UsageError: If the resolution is unknown or the networks cannot take it.
    """
    factor = vae_factor(vae)
    if resolution is None:
        size = unet.config.sample_size
        if size is None:
            raise UsageError(
                f"--{option} is missing: the config of this teacher's UNet has no sample_size. "
                "Give the pixels per side of an image, for example 512."
            )
        height, width = (size, size) if isinstance(size, int) else size
        return height, width
    multiple = factor * 2 ** (len(unet.config.block_out_channels) - 1)
    if resolution < multiple or resolution % multiple:
        raise UsageError(
            f"--{option}: {resolution} pixels do not fit this teacher's VAE (factor {factor}) and "
            f"UNet. Use a positive multiple of {multiple}."
        )
    return resolution // factor, resolution // factor
