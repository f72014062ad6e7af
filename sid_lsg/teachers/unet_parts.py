"""Check that a UNet, an autoencoder and text encoders fit together; choose the latents' size."""

from collections.abc import Mapping

from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel

from sid_lsg.messages.errors import UsageError
from sid_lsg.method.schedule import PREDICTION_TYPES
from sid_lsg.teachers.autoencoder import vae_factor


def check_parts(
    unet: UNet2DConditionModel,
    vae: AutoencoderKL,
    features: Mapping[str, int],
    scheduler: DDPMScheduler,
    option: str,
    problem: str | None,
    wanted: str,
) -> None:
    """Reject parts that load but do not form a model.

    Args:
        unet: The denoiser.
        vae: The autoencoder.
        features: Features per token that each text encoder outputs.
        scheduler: Gives the prediction type.
        option: The option that named the model, for messages.
        problem: What the family itself finds wrong, if anything.
        wanted: What to give instead.

    Raises:
        UsageError: If the parts do not fit together.
    """
    problem = problem or _misfit(unet, vae, features, scheduler)
    if problem:
        raise UsageError(f"--{option}: {problem}. Give {wanted}.")


def channels_problem(unet: UNet2DConditionModel, vae: AutoencoderKL) -> str | None:
    """Describe a UNet whose channels are not those of the autoencoder's latents; None if they are.

    The pipelines call such a UNet, and fail or ignore a part of its output.
    """
    channels = unet.config.in_channels, vae.config.latent_channels
    if channels[0] != channels[1]:
        return (
            f"its UNet takes {channels[0]} channels and its VAE's latents have {channels[1]} "
            "(in_channels and latent_channels: an inpainting or upscaling model?)"
        )
    if unet.config.out_channels != channels[0]:
        return (
            f"its UNet takes {channels[0]} channels and returns {unet.config.out_channels} "
            "(in_channels and out_channels: a model with a learned variance?)"
        )
    return None


def _misfit(
    unet: UNet2DConditionModel,
    vae: AutoencoderKL,
    features: Mapping[str, int],
    scheduler: DDPMScheduler,
) -> str | None:
    """Describe the first parts that do not fit together."""
    if problem := channels_problem(unet, vae):
        return problem
    if unet.config.cross_attention_dim != (width := sum(features.values())):
        verb = "outputs" if len(features) == 1 else "output"
        return (
            f"its UNet attends to {unet.config.cross_attention_dim} features and its "
            f"{' and '.join(features)} {verb} {width} (cross_attention_dim and hidden_size)"
        )
    if scheduler.config.get("sigma_data") is not None:
        return "its scheduler is an EDM scheduler, which has sigmas and no betas (sigma_data)"
    prediction = scheduler.config.prediction_type
    if prediction not in PREDICTION_TYPES:
        return (
            f"its scheduler's prediction_type is {prediction!r}, not one of "
            f"{', '.join(PREDICTION_TYPES)}"
        )
    return None


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
        sides = [size, size] if isinstance(size, int) else size
        whole = isinstance(sides, list | tuple) and all(
            isinstance(side, int) and side > 0 for side in sides
        )
        if not whole or len(sides) != 2:
            raise UsageError(
                f"--{option} is missing: the config of this teacher's UNet has sample_size {size!r}"
                ", which is no size. Give the pixels per side of an image, for example 512."
            )
        return sides[0], sides[1]
    multiple = factor * 2 ** (len(unet.config.block_out_channels) - 1)
    if resolution < multiple or resolution % multiple:
        raise UsageError(
            f"--{option}: {resolution} pixels do not fit this teacher's VAE (factor {factor}) and "
            f"UNet. Use a positive multiple of {multiple}."
        )
    return resolution // factor, resolution // factor
