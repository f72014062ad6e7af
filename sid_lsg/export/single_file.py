"""Save a generator with its autoencoder and text encoders as one file, in the original layout.

ComfyUI, A1111, Forge, InvokeAI and diffusers' `from_single_file` read it.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sid_lsg.export.original import latent_diffusion, transformers
from sid_lsg.export.original.layout import Layout, NoPlace
from sid_lsg.export.original.text_encoders import CLIP, OPEN_CLIP, T5
from sid_lsg.files.streaming import Pending, write_safetensors
from sid_lsg.messages.errors import UsageError

_NETWORK = "model.diffusion_model."


@dataclass(frozen=True)
class Original:
    """How a family's original code stores a model.

    Attributes:
        architecture: The name in the file's `modelspec.architecture`.
        layout: The network's layout, by its configuration.
        autoencoder: Prefix of the autoencoder's weights.
        text_encoders: Prefix and layout of each text encoder, by its name in the pipeline.
    """

    architecture: str
    layout: Callable[[Mapping[str, Any]], Layout]
    autoencoder: str
    text_encoders: Mapping[str, tuple[str, Layout]]


_LDM = latent_diffusion.unet, "first_stage_model."
_SD1 = Original(
    "stable-diffusion-v1", *_LDM, {"text_encoder": ("cond_stage_model.transformer.", CLIP)}
)
_SD2 = Original(
    "stable-diffusion-v2", *_LDM, {"text_encoder": ("cond_stage_model.model.", OPEN_CLIP)}
)
_SDXL = Original(
    "stable-diffusion-xl-v1-base",
    *_LDM,
    {
        "text_encoder": ("conditioner.embedders.0.transformer.", CLIP),
        "text_encoder_2": ("conditioner.embedders.1.model.", OPEN_CLIP),
    },
)
_SD3 = Original(
    "stable-diffusion-v3",
    transformers.sd3,
    "first_stage_model.",
    {
        "text_encoder": ("text_encoders.clip_l.transformer.", CLIP),
        "text_encoder_2": ("text_encoders.clip_g.transformer.", CLIP),
        "text_encoder_3": ("text_encoders.t5xxl.transformer.", T5),
    },
)
_FLUX = Original(
    "flux-1-dev",
    transformers.flux,
    "vae.",
    {
        "text_encoder": ("text_encoders.clip_l.transformer.", CLIP),
        "text_encoder_2": ("text_encoders.t5xxl.transformer.", T5),
    },
)


class Part(NamedTuple):
    """A network and the place of its weights in the file."""

    prefix: str
    layout: Layout
    weights: Mapping[str, Tensor]


def original_of(network: Any, components: Mapping[str, Any]) -> Original:
    """Return how the original code of a model's family stores it.

    Args:
        network: The denoising network.
        components: The pipeline's components.

    Raises:
        UsageError: If no tool reads one file of this family.
    """
    match type(network).__name__:
        case "UNet2DConditionModel" if components.get("text_encoder_2") is not None:
            return _SDXL
        case "UNet2DConditionModel":
            return _SD2 if network.config.use_linear_projection else _SD1
        case "SD3Transformer2DModel":
            return _SD3
        case "FluxTransformer2DModel":
            return _FLUX
        case other:
            raise UsageError(
                f"--format: {other} has no layout of one file that ComfyUI or diffusers read. Use "
                "--format diffusers."
            )


def architecture_of(network: Any, components: Mapping[str, Any]) -> str:
    """Return a model's `modelspec.architecture`; the network's class if it has none."""
    try:
        return original_of(network, components).architecture
    except UsageError:
        return type(network).__name__


def parts_of(network: Any, components: Mapping[str, Any]) -> list[Part]:
    """List a model's networks in the order in which they are written."""
    original, vae = original_of(network, components), components["vae"]
    parts = [Part(_NETWORK, original.layout(network.config), network.state_dict())]
    layout = latent_diffusion.autoencoder(vae.config)
    parts.append(Part(original.autoencoder, layout, vae.state_dict()))
    for name, (prefix, layout) in original.text_encoders.items():
        if isinstance(encoder := components.get(name), nn.Module):
            parts.append(Part(prefix, layout, encoder.state_dict()))
    return parts


def save_single_file(
    path: Path,
    network: Any,
    components: Mapping[str, Any],
    dtype: torch.dtype,
    metadata: Mapping[str, str],
) -> None:
    """Write a model as one file; one weight at a time is converted in memory.

    Args:
        path: The file.
        network: The denoising network.
        components: The pipeline's other components.
        dtype: Dtype of all floating-point weights.
        metadata: The file's metadata.

    Raises:
        UsageError: If a weight has no place in the original layout, or overflows the dtype.
        OSError: If writing fails.
    """
    write_safetensors(path, _pending(parts_of(network, components), dtype), metadata)


def _pending(parts: list[Part], dtype: torch.dtype) -> Iterator[Pending]:
    """Yield the file's weights, with functions that make them."""
    for prefix, layout, weights in parts:
        try:
            names = layout.names(weights)
        except NoPlace as error:
            raise UsageError(f"--format: {error}. Use --format diffusers.") from error
        for name, sources in names.items():
            tensors = [weights[source] for source in sources]
            yield Pending(f"{prefix}{name}", *_maker(layout, name, tensors, dtype))


def _maker(
    layout: Layout, name: str, tensors: list[Tensor], dtype: torch.dtype
) -> tuple[torch.dtype, tuple[int, ...], Callable[[], Tensor]]:
    """Return a weight's dtype and shape, and a function that makes it."""
    kept = dtype if tensors[0].is_floating_point() else tensors[0].dtype

    def make(tensors: list[Tensor] = tensors) -> Tensor:
        joined = torch.cat(tensors) if len(tensors) > 1 else tensors[0]
        made = layout.change(name, joined).to(kept).contiguous()
        if made.is_floating_point() and not made.is_meta and not made.isfinite().all():
            raise UsageError(
                f"--dtype: the weight {name!r} is too large for {str(dtype).split('.')[-1]}. Use "
                "bfloat16 or float32."
            )
        return made

    return kept, tuple(make([tensor.to("meta") for tensor in tensors]).shape), make
