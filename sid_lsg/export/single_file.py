"""Save a generator with its autoencoder and text encoders as one file, in the original layout.

ComfyUI, A1111, Forge, InvokeAI and diffusers' `from_single_file` read it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
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
    """A network and the place of its weights in the file.

    Attributes:
        prefix: What its names begin with.
        layout: Its names.
        outline: Its weights, possibly on the meta device.
        read: Returns the weights.
    """

    prefix: str
    layout: Layout
    outline: Mapping[str, Tensor]
    read: Callable[[], Mapping[str, Tensor]]


Whole = Callable[[str, nn.Module], nn.Module]
"""Loads a component, by its name, that has no weights; returns others."""


def parts_of(
    original: Original,
    network: Any,
    components: Mapping[str, Any],
    weights: Mapping[str, Tensor] | None = None,
    whole: Whole | None = None,
) -> list[Part]:
    """List a model's networks; the arguments are those of `save_single_file`."""
    layout, outline = original.layout(network.config), network.state_dict()
    own = outline if weights is None else weights
    if original.autoencoder is None:
        return [Part("", layout, outline, lambda: own)]
    parts = [Part(_NETWORK, layout, outline, lambda: own)]
    vae = components["vae"]
    layout, of_vae = latent_diffusion.autoencoder(vae.config), vae.state_dict()
    parts.append(Part(original.autoencoder, layout, of_vae, lambda: of_vae))
    kept: dict[str, Mapping[str, Tensor]] = {}

    def one_at_a_time(name: str, encoder: nn.Module) -> Mapping[str, Tensor]:
        if name not in kept:
            kept.clear()
            kept[name] = (whole(name, encoder) if whole else encoder).state_dict()
        return kept[name]

    for name, (prefix, layout) in original.text_encoders.items():
        if isinstance(encoder := components.get(name), nn.Module):
            read = partial(one_at_a_time, name, encoder)
            parts.append(Part(prefix, layout, encoder.state_dict(), read))
    return parts


def save_single_file(
    path: Path,
    original: Original,
    network: Any,
    components: Mapping[str, Any],
    dtype: torch.dtype,
    metadata: Mapping[str, str],
    weights: Mapping[str, Tensor] | None = None,
    whole: Whole | None = None,
    prediction_type: str = "epsilon",
) -> None:
    """Write a model as one file; one weight at a time is converted in memory.

    Args:
        path: The file.
        original: How the original code stores the model.
        network: The denoising network.
        components: The pipeline's other components.
        dtype: Dtype of all floating-point weights.
        metadata: The file's metadata.
        weights: The network's weights, if it has only their shapes.
        whole: Loads text encoders that have only shapes, one at a time.
        prediction_type: What the network predicts. ComfyUI takes SDXL to predict noise, unless an
            empty tensor says that it predicts v.

    Raises:
        UsageError: If a weight has no place in the original layout, or overflows the dtype.
        OSError: If writing fails.
    """
    parts = parts_of(original, network, components, weights, whole)
    pending = [*_pending(parts, dtype)]
    if original.v_key and prediction_type == "v_prediction":
        pending.append(Pending(original.v_key, dtype, (0,), partial(torch.empty, 0, dtype=dtype)))
    write_safetensors(path, pending, metadata)


def _pending(parts: list[Part], dtype: torch.dtype) -> Iterator[Pending]:
    """Yield the file's weights, with functions that make them."""
    for prefix, layout, outline, read in parts:
        try:
            names = layout.names(outline)
        except NoPlace as error:
            raise UsageError(f"--format: {error}. Use --format diffusers.") from error
        for name, sources in names.items():
            first = outline[sources[0]]
            kept = dtype if first.is_floating_point() else first.dtype
            shape = _made(layout, name, [outline[one].to("meta") for one in sources], kept).shape
            make = partial(_read, layout, name, sources, read, kept)
            yield Pending(f"{prefix}{name}", kept, tuple(shape), make)


def _read(
    layout: Layout,
    name: str,
    sources: Sequence[str],
    read: Callable[[], Mapping[str, Tensor]],
    dtype: torch.dtype,
) -> Tensor:
    made = _made(layout, name, [read()[source] for source in sources], dtype)
    if made.is_floating_point() and not made.isfinite().all():
        raise overflow(name, dtype)
    return made


def _made(layout: Layout, name: str, tensors: list[Tensor], dtype: torch.dtype) -> Tensor:
    joined = torch.cat(tensors) if len(tensors) > 1 else tensors[0]
    return layout.change(name, joined).to(dtype).contiguous()
