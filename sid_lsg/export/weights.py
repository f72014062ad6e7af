"""Write a network in diffusers' layout, weight by weight."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sid_lsg.files.streaming import Pending, write_safetensors
from sid_lsg.messages.errors import UsageError
from sid_lsg.networks.lora import Merged
from sid_lsg.teachers.precision import backbone

_FILE = "diffusion_pytorch_model.safetensors"  # diffusers' name


def save_weights(
    network: nn.Module,
    folder: Path,
    dtype: torch.dtype,
    weights: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a network's configuration and weights, with its adapters merged.

    Each weight is merged, converted and written before the next, so there is no second copy of the
    network.

    Args:
        network: The network.
        folder: The folder to write.
        dtype: Dtype of the weights.
        weights: The weights, if the network has only their shapes.

    Raises:
        UsageError: If a weight overflows the dtype.
    """
    base: Any = backbone(network)
    folder.mkdir(parents=True, exist_ok=True)
    base.save_config(folder)
    own = Merged(network) if weights is None else weights
    pending = [
        Pending(
            name,
            dtype if value.is_floating_point() else value.dtype,
            tuple(value.shape),
            partial(_made, own, name, dtype),
        )
        for name, value in base.state_dict().items()
    ]
    write_safetensors(folder / _FILE, pending, {})


def _made(weights: Mapping[str, Tensor], name: str, dtype: torch.dtype) -> Tensor:
    return converted(name, weights[name], dtype)


def converted(name: str, value: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a weight in a dtype; integers are unchanged.

    Raises:
        UsageError: If it overflows the dtype.
    """
    if not value.is_floating_point():
        return value
    value = value.to(dtype)
    if not value.isfinite().all():
        raise overflow(name, dtype)
    return value


def overflow(name: str, dtype: torch.dtype) -> UsageError:
    """Return the error for a weight that is too large for a dtype."""
    return UsageError(
        f"--dtype: the weight {name!r} is too large for {str(dtype).split('.')[-1]}. Use "
        "bfloat16 or float32."
    )
