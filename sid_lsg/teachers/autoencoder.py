"""Decode and encode latents with an autoencoder, scaled as the networks see them."""

from typing import Any

import torch
from diffusers import AutoencoderDC, AutoencoderKL
from torch import Tensor

from sid_lsg.images.pixels import from_uint8

_PUBLISHED = {
    0.18215: "Stable Diffusion 1 and 2",
    0.13025: "SDXL",
    1.5305: "Stable Diffusion 3",
    0.3611: "FLUX.1",
    0.41407: "SANA",
}
"""The `scaling_factor` of published autoencoders; those with equal channels are interchangeable."""


@torch.no_grad()
def decode(vae: AutoencoderKL | AutoencoderDC, latents: Tensor) -> Tensor:
    """Decode latents [B, C, H, W] into images [B, 3, H, W] float32, nominally in [-1, 1]."""
    latents = latents.to(vae.dtype)
    scale, shift = scale_and_shift(vae, latents)
    scaled = latents / scale
    return vae.decode(scaled if shift is None else scaled + shift, return_dict=False)[0].float()


@torch.no_grad()
def encode(vae: AutoencoderKL | AutoencoderDC, images: Tensor) -> Tensor:
    """Encode images [B, 3, H, W] uint8: the mean of the posterior (not a sample), scaled, float32.

    The inverse of `decode`'s scaling. Deep compression autoencoders have no posterior, but latents.
    """
    posterior = vae.encode(from_uint8(images).to(vae.dtype), return_dict=False)[0]
    mean = (posterior if torch.is_tensor(posterior) else posterior.mean).float()
    scale, shift = scale_and_shift(vae, mean)
    return (mean if shift is None else mean - shift) * scale


def scale_and_shift(vae: AutoencoderKL | AutoencoderDC, like: Tensor) -> tuple[Any, Any]:
    """Return a and b of z = x / a + b, for the networks' latents x and the autoencoder's z.

    a is `scaling_factor`; b is `shift_factor`, or None. An autoencoder with `latents_mean` and
    `latents_std` has the mean as b, and scaling_factor / std as a, per channel.
    """
    config = vae.config
    mean, std = config.get("latents_mean"), config.get("latents_std")
    if mean is None or std is None:
        return config.scaling_factor, config.get("shift_factor")
    mean, std = (like.new_tensor(values).view(1, -1, 1, 1) for values in (mean, std))
    return config.scaling_factor / std, mean


def foreign_scale(config: Any, own: float) -> str | None:
    """Describe the scale of another family's autoencoder, whose weights have the same shapes.

    Args:
        config: The autoencoder's configuration.
        own: The `scaling_factor` of the family's published models.

    Returns:
        A sentence without a period; None for the family's own scale, and for any other, which a
        fine-tuned autoencoder may have.
    """
    found = config.get("scaling_factor")
    owner = _PUBLISHED.get(found)
    if found == own or owner is None:
        return None
    return (
        f"the config of its vae has scaling_factor {found}, as {owner} has, not {own}: if it is "
        "not this model's own autoencoder, colours and contrast will be wrong"
    )


def vae_factor(vae: AutoencoderKL) -> int:
    """Return the number of image pixels per latent pixel, along each side."""
    return int(2 ** (len(vae.config.block_out_channels) - 1))
