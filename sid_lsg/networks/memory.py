"""Options that save memory at the cost of precision or time, per network."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from sid_lsg.distributed.sharding import is_sharded
from sid_lsg.messages.errors import UsageError
from sid_lsg.networks.lora import adapters, base
from sid_lsg.options.text import Text
from sid_lsg.options.training import EMADevice, FrozenPrecision
from sid_lsg.teachers.base import Teacher, linear_layers


def set_frozen_precision(
    precision: FrozenPrecision, teacher: Teacher, *networks: nn.Module
) -> None:
    """Store the frozen linear and convolution weights in bfloat16 if `precision` is bf16.

    These are the teacher's weights and those under the networks' adapters, which may be the
    teacher's. Their layers compute in bfloat16: bf16-mixed would round the weights to the same bits
    in every forward pass. Norms stay in float32, as in mixed precision. The VAE and the text
    encoder, which are small and exported, stay in float32.
    """
    if precision == "bf16":
        teacher.frozen_dtype = torch.bfloat16
        own = teacher.network.parameters()
        stored = {id(p) for p in (*own, *(p for n in networks for p in base(n).values()))}
        for network in (teacher.network, *networks):
            for p in (
                p for layer in linear_layers(network) for p in layer.parameters(recurse=False)
            ):
                if id(p) in stored:  # frozen
                    p.data = p.data.to(torch.bfloat16)


def set_text(text: Text, teacher: Teacher) -> None:
    """Set the length, null conditioning, precision and device of a teacher's text encoders.

    Raises:
        UsageError: If the teacher has no such choice.
    """
    if text.null is not None:
        if teacher.null_kind is None:
            raise UsageError(
                f"--model.text.null is {text.null}, but this teacher's null conditioning is that "
                "of the empty prompt. Leave it out."
            )
        teacher.null_kind = text.null
    if text.max_sequence_length is not None:
        if teacher.max_sequence_length is None:
            raise UsageError(
                f"--model.text.max_sequence_length is {text.max_sequence_length}, but this "
                "teacher's prompts have a fixed length. Leave it out."
            )
        teacher.max_sequence_length = text.max_sequence_length
    if text.precision == "bf16":
        for part in teacher.text_parts.values():
            part.to(torch.bfloat16)
    if text.device == "cpu":
        teacher.keep_text_apart()


def checkpoint_gradients(networks: Mapping[str, nn.Module], names: Sequence[str]) -> None:
    """Enable activation checkpointing in some networks.

    Diffusers checkpoints whenever gradients are recorded. This includes frozen networks that
    gradients flow through, and evaluation mode, where dropout stays off.

    Args:
        networks: The networks by the names that the option accepts.
        names: The networks to checkpoint.

    Raises:
        UsageError: If one does not support checkpointing.
    """
    for name in names:
        network: Any = networks[name]
        if not can_checkpoint(network):
            raise UsageError(
                f"--model.memory.checkpointing: {type(network).__name__} does not support "
                "it. Leave the option out, and lower --model.micro_batch_size."
            )
        network.enable_gradient_checkpointing()


def can_checkpoint(network: nn.Module) -> bool:
    """Return whether a network of diffusers supports activation checkpointing."""
    return bool(getattr(network, "_supports_gradient_checkpointing", False))


def check_ema_device(device: EMADevice | None, ema: nn.Module) -> None:
    """Reject a device for a sharded EMA and for one that holds only LoRA adapters.

    Raises:
        UsageError: If a device is given for such an EMA.
    """
    reason = "fsdp2 already shards the EMA over all devices" if is_sharded(ema) else ""
    if adapters(ema):
        reason = "the EMA holds only LoRA adapters, which are small; their base is shared"
    if device and reason:
        raise UsageError(f"--model.ema.device {device}: {reason}. Leave the option out.")


def recompute(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a function in activation checkpointing.

    The recomputed numbers are the same, so gradients are bitwise equal.
    """
    return partial(checkpoint, function, use_reentrant=False, preserve_rng_state=False)


@contextmanager
def borrowed(network: nn.Module, device: torch.device) -> Iterator[nn.Module]:
    """Move a network to a device within the context, then move it back."""
    home = next(network.parameters()).device
    if home == device:
        yield network
        return
    network.to(device)
    try:
        yield network
    finally:
        network.to(home)
