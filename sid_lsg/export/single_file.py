"""Save a generator with its autoencoder and text encoders as one file, in the original layout.

ComfyUI, A1111, Forge, InvokeAI and diffusers' `from_single_file` read it.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sid_lsg.export.original import latent_diffusion
from sid_lsg.export.original.layout import Layout, NoPlace
from sid_lsg.export.original.models import Original
from sid_lsg.export.weights import overflow
from sid_lsg.files.streaming import Pending, write_safetensors
from sid_lsg.messages.errors import UsageError

_NETWORK = "model.diffusion_model."


class Part(NamedTuple):
    """A network and the place of its weights in the file."""

    prefix: str
    layout: Layout
    weights: Mapping[str, Tensor]


def parts_of(original: Original, network: Any, components: Mapping[str, Any]) -> list[Part]:
    """List a model's networks in the order in which they are written."""
    layout = original.layout(network.config)
    if original.autoencoder is None:
        return [Part("", layout, network.state_dict())]
    parts = [Part(_NETWORK, layout, network.state_dict())]
    vae = components["vae"]
    layout = latent_diffusion.autoencoder(vae.config)
    parts.append(Part(original.autoencoder, layout, vae.state_dict()))
    for name, (prefix, layout) in original.text_encoders.items():
        if isinstance(encoder := components.get(name), nn.Module):
            parts.append(Part(prefix, layout, encoder.state_dict()))
    return parts


def save_single_file(
    path: Path,
    original: Original,
    network: Any,
    components: Mapping[str, Any],
    dtype: torch.dtype,
    metadata: Mapping[str, str],
) -> None:
    """Write a model as one file; one weight at a time is converted in memory.

    Args:
        path: The file.
        original: How the original code stores the model.
        network: The denoising network.
        components: The pipeline's other components.
        dtype: Dtype of all floating-point weights.
        metadata: The file's metadata.

    Raises:
        UsageError: If a weight has no place in the original layout, or overflows the dtype.
        OSError: If writing fails.
    """
    write_safetensors(path, _pending(parts_of(original, network, components), dtype), metadata)


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
            raise overflow(name, dtype)
        return made

    return kept, tuple(make([tensor.to("meta") for tensor in tensors]).shape), make
