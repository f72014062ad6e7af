"""The dtypes in which a teacher's parts are stored, and in which networks compute."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import torch
from torch import nn

_AUTOCAST = "_autocast"  # the attribute of a network with what `set_autocast` gave


class Dtypes(NamedTuple):
    """Dtypes in which a teacher's weights are loaded, without a copy in another one.

    Attributes:
        network: Of the network's linear and convolution layers; its other weights are float32. None
            leaves the weights in their files until they are used.
        text: Of the text encoders; int8 for 8-bit weights of their linear layers. None makes them
            without weights: `Teacher.whole_part` loads them.
    """

    network: torch.dtype | None = torch.float32
    text: torch.dtype | None = torch.float32


FLOAT32 = Dtypes()
IN_FILES = Dtypes(None, None)


def linear_layers(module: nn.Module) -> Iterator[nn.Linear | nn.Conv2d]:
    """Yield the linear and convolution layers, which mixed precision runs in 16 bits."""
    return (layer for layer in module.modules() if isinstance(layer, nn.Linear | nn.Conv2d))


def in_8_bits(part: nn.Module) -> bool:
    """Return whether a text encoder has 8-bit weights of bitsandbytes."""
    return any(getattr(module, "is_loaded_in_8bit", False) for module in part.modules())


def backbone(network: nn.Module) -> nn.Module:
    """Return the network whose layers compute: the base of one with adapters, else itself."""
    base: nn.Module = getattr(network, "base", network)
    return base


def set_autocast(network: nn.Module, dtype: torch.dtype | None) -> None:
    """Let a network compute in mixed precision, with 16 bits in linear and convolution layers.

    The dtype of its weights does not tell: some may be stored in 16 bits, and a sharded network's
    have another dtype while they are gathered.
    """
    vars(backbone(network))[_AUTOCAST] = dtype


def autocast_dtype(network: nn.Module) -> torch.dtype | None:
    """Return the dtype that `set_autocast` gave, or None."""
    found: torch.dtype | None = vars(backbone(network)).get(_AUTOCAST)
    return found


@contextmanager
def without_float16() -> Iterator[None]:
    """Switch autocast off within the context if it computes in float16.

    The activations of T5, Gemma 2 and SDXL's autoencoder overflow float16.
    """
    with ExitStack() as stack:
        for device in ("cpu", "cuda"):
            enabled = torch.is_autocast_enabled(device)
            if enabled and torch.get_autocast_dtype(device) == torch.float16:
                stack.enter_context(torch.autocast(device, enabled=False))
        yield
