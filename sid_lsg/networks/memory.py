"""Options that give precision or time for memory, network by network."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from sid_lsg.distributed.sharding import is_sharded
from sid_lsg.messages.checks import refuse
from sid_lsg.messages.errors import UsageError
from sid_lsg.networks.lora import adapters, base
from sid_lsg.teachers.base import Teacher, products

Memory = Literal["fast", "balanced", "lean"]
FrozenPrecision = Literal["32", "bf16"]
EMADevice = Literal["cpu"]

CHECKPOINTED = ("fake_score", "generator", "teacher")  # all networks that may be


def set_frozen_precision(
    precision: FrozenPrecision, teacher: Teacher, *networks: nn.Module
) -> None:
    """Store the weights of a teacher's products in bfloat16, if asked, and compute with them so.

    Mixed precision (bf16-mixed) would round them to the same bits in every evaluation; its norms
    stay in float32, as there. So it is with the weights under other networks' adapters, which may
    be the teacher's. The VAE and the text encoder, which are small and are exported, stay whole.
    """
    if precision not in ("32", "bf16"):
        refuse("model.frozen_precision", precision, "32 or bf16")
    if precision == "bf16":
        teacher.products_in = torch.bfloat16
        own = teacher.network.parameters()
        stored = {id(p) for p in (*own, *(p for n in networks for p in base(n).values()))}
        for network in (teacher.network, *networks):
            for p in (p for layer in products(network) for p in layer.parameters(recurse=False)):
                if id(p) in stored:  # not what is trained
                    p.data = p.data.to(torch.bfloat16)


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


def check_ema_device(device: EMADevice | None, ema: nn.Module) -> None:
    """Refuse to keep an average apart that is not whole, or not alone.

    Raises:
        UsageError: If it is one of these.
    """
    reason = "fsdp2 spreads the average over all devices already" if is_sharded(ema) else ""
    if adapters(ema):
        reason = "the average is of LoRA adapters, which are small, on weights that it shares"
    if device and reason:
        raise UsageError(f"--model.ema_device {device}: {reason}. Leave the option out.")


def recomputed(memory: Memory) -> tuple[str, ...]:
    """Return the networks that the generator's phase evaluates twice, to keep fewer activations.

    The phase stores what the generator, the teacher and the fake score are to be differentiated
    with. `fast` keeps all of it; `balanced` evaluates the teacher again when the fake score's is
    done with, so that one of the two is held at a time; `lean` the generator too, last of all.
    """
    if memory not in get_args(Memory):
        refuse("model.memory", memory, "fast, balanced or lean")
    return {"fast": (), "balanced": ("teacher",), "lean": ("teacher", "generator")}[memory]


def recompute(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that stores no activations: the backward pass evaluates it again.

    It computes the same numbers twice, so that gradients are the same bits.
    """
    return partial(checkpoint, function, use_reentrant=False, preserve_rng_state=False)


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
