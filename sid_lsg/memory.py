"""Options that give precision or time for memory, network by network."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from torch import nn

from sid_lsg.checks import refuse
from sid_lsg.errors import UsageError
from sid_lsg.teacher import Teacher

FrozenPrecision = Literal["32", "bf16"]
EMADevice = Literal["cpu"]


def set_frozen_precision(teacher: Teacher, precision: FrozenPrecision) -> None:
    """Store a teacher's networks in bfloat16, if asked; its schedule stays in float32."""
    if precision not in ("32", "bf16"):
        refuse("model.frozen_precision", precision, "32 or bf16")
    for name, child in teacher.named_children():
        if name != "schedule" and precision == "bf16":
            child.to(torch.bfloat16)


def checkpoint_gradients(networks: Mapping[str, nn.Module], names: Sequence[str]) -> None:
    """Let some networks compute activations again in the backward pass, in place of storing them.

    Diffusers does that wherever gradients are recorded, so that a frozen network through which they
    flow does it too, and in evaluation mode: dropout stays off.

    Args:
        networks: By the names that the option may have.
        names: Which of them.

    Raises:
        UsageError: If there is no such network, or it cannot do it.
    """
    for name in names:
        if name not in networks:
            wanted = f"a list of {', '.join(networks)}"
            refuse("model.gradient_checkpointing", list(names), wanted)
        enable = getattr(networks[name], "enable_gradient_checkpointing", None)
        if enable is None:
            raise UsageError(
                f"--model.gradient_checkpointing: {type(networks[name]).__name__} cannot compute "
                "activations again. Leave the option out, and lower --model.micro_batch_size."
            )
        enable()


@contextmanager
def borrowed(network: nn.Module, device: torch.device) -> Iterator[nn.Module]:
    """Use a network on a device, and put it back where it was."""
    home = next(network.parameters()).device
    if home == device:
        yield network
        return
    network.to(device)
    try:
        yield network
    finally:
        network.to(home)
