"""Describe how the original codes store whole models, by a teacher's `original_layout`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from sid_lsg.export.original import latent_diffusion, transformers
from sid_lsg.export.original.layout import Layout
from sid_lsg.export.original.text_encoders import CLIP, OPEN_CLIP, T5
from sid_lsg.messages.errors import UsageError
from sid_lsg.options.choices import LoRALayout


class Beside(NamedTuple):
    """The files that ComfyUI loads beside a file of the network alone.

    Attributes:
        text_encoder: The published text encoder's file, in ComfyUI's `models/text_encoders`.
        kind: Its `type` in the node `CLIPLoader`.
        autoencoder: The published autoencoder's file, in `models/vae`.
        latents: The node that makes empty latents.
    """

    text_encoder: str
    kind: str
    autoencoder: str
    latents: str = "EmptySD3LatentImage"


@dataclass(frozen=True)
class Original:
    """Describe how a family's original code stores a model.

    Attributes:
        architecture: The name in the file's `modelspec.architecture`.
        layout: The network's layout, by its configuration.
        autoencoder: Prefix of the autoencoder's weights; None if they and the text encoders are
            files of their own, as the tools load them.
        text_encoders: Prefix and layout of each text encoder, by its name in the pipeline.
        lora_names: Whose names kohya uses in LoRA files: "diffusers" or "original".
        comfyui_lora: The layout of LoRA files that ComfyUI reads.
        beside: The files of their own, by the network's configuration.
        v_key: The name of an empty tensor by which ComfyUI knows that a network predicts v.
        t5_tokens: The number of T5's tokens that ComfyUI gives for a short prompt.
    """

    architecture: str
    layout: Callable[[Mapping[str, Any]], Layout]
    autoencoder: str | None = None
    text_encoders: Mapping[str, tuple[str, Layout]] = field(default_factory=dict)
    lora_names: str = "original"
    comfyui_lora: LoRALayout = "diffusers"
    beside: Callable[[Mapping[str, Any]], Beside] | None = None
    v_key: str | None = None
    t5_tokens: int | None = None


def _flux2_files(config: Mapping[str, Any]) -> Beside:
    large = config["joint_attention_dim"] == 3 * 4096  # klein 9B, which reads Qwen 3 8B
    encoder = "qwen_3_8b_fp8mixed" if large else "qwen_3_4b"
    latents = "EmptyFlux2LatentImage"
    return Beside(f"{encoder}.safetensors", "flux2", "flux2-vae.safetensors", latents)


_Z_IMAGE_FILES = Beside("qwen_3_4b.safetensors", "lumina2", "ae.safetensors")
_QWEN_IMAGE_FILES = Beside("qwen_2.5_vl_7b.safetensors", "qwen_image", "qwen_image_vae.safetensors")
_LDM = latent_diffusion.unet, "first_stage_model."
_CLIP_L = "text_encoders.clip_l.transformer.", CLIP
_T5 = "text_encoders.t5xxl.transformer.", T5

ORIGINALS: Mapping[str, Original] = {
    "stable-diffusion-1": Original(
        "stable-diffusion-v1",
        *_LDM,
        {"text_encoder": ("cond_stage_model.transformer.", CLIP)},
        "diffusers",
        "kohya",
    ),
    "stable-diffusion-2": Original(
        "stable-diffusion-v2",
        *_LDM,
        {"text_encoder": ("cond_stage_model.model.", OPEN_CLIP)},
        "diffusers",
        "kohya",
    ),
    "sdxl": Original(
        "stable-diffusion-xl-v1-base",
        *_LDM,
        {
            "text_encoder": ("conditioner.embedders.0.transformer.", CLIP),
            "text_encoder_2": ("conditioner.embedders.1.model.", OPEN_CLIP),
        },
        comfyui_lora="kohya",
        v_key="v_pred",
    ),
    "sd3": Original(
        "stable-diffusion-v3",
        transformers.sd3,
        "first_stage_model.",
        {
            "text_encoder": _CLIP_L,
            "text_encoder_2": ("text_encoders.clip_g.transformer.", CLIP),
            "text_encoder_3": _T5,
        },
        t5_tokens=77,
    ),
    "flux": Original(
        "flux-1-dev",
        transformers.flux,
        "vae.",
        {"text_encoder": _CLIP_L, "text_encoder_2": _T5},
        t5_tokens=256,
    ),
    "flux2": Original("flux-2", transformers.flux2, beside=_flux2_files),
    "z-image": Original("z-image", transformers.z_image, beside=lambda _: _Z_IMAGE_FILES),
    "qwen-image": Original(
        "qwen-image", transformers.qwen_image, beside=lambda _: _QWEN_IMAGE_FILES
    ),
}


def original(name: str | None) -> Original:
    """Return how the original code stores a model.

    Args:
        name: The teacher's `original_layout`.

    Raises:
        UsageError: If there is none: no tool reads one file of this family.
    """
    if name is None:
        raise UsageError("--format: no tool reads one file of this family. Use --format diffusers.")
    return ORIGINALS[name]
