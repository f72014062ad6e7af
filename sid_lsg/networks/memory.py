"""Options that save memory at the cost of precision or time, per network."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from sid_lsg.distributed.sharding import is_sharded, recomputation
from sid_lsg.messages.errors import UsageError
from sid_lsg.networks.adapted import adapters, enable_checkpointing
from sid_lsg.options.text import Text, TextPrecision
from sid_lsg.options.training import Adapters, EMADevice, FrozenPrecision
from sid_lsg.teachers.base import Teacher
from sid_lsg.teachers.precision import Dtypes, backbone, in_8_bits, linear_layers, set_autocast


def loaded_dtypes(frozen: FrozenPrecision, lora: Adapters, text: TextPrecision) -> Dtypes:
    """Return the dtypes in which a teacher's weights can be loaded.

    Networks whose weights are all trained start from copies in float32. Under adapters of both
    networks there are none, and frozen weights never need to exist in float32.

    Args:
        frozen: Precision of frozen weights.
        lora: The adapters.
        text: Precision of the text encoders.
    """
    both = lora.fake_score is not None and lora.generator is not None
    return Dtypes(
        torch.bfloat16 if frozen == "bf16" and both else torch.float32,
        {"bf16": torch.bfloat16, "int8": torch.int8}.get(text, torch.float32),
    )


def set_frozen_precision(
    precision: FrozenPrecision, teacher: Teacher, *networks: nn.Module
) -> None:
    """Store the frozen linear and convolution weights in bfloat16 if `precision` is bf16.

    These are the teacher's weights and those of other bases of networks with adapters. Their layers
    compute in bfloat16: bf16-mixed would round the weights to the same bits in every forward pass.
    Norms stay in float32, as in mixed precision. The VAE and the text encoder, which are small and
    exported, stay in float32.
    """
    if precision == "bf16":
        bases = [backbone(network) for network in networks if adapters(network)]
        for frozen in (teacher.network, *bases):
            set_autocast(frozen, torch.bfloat16)
            for layer in linear_layers(frozen):
                for p in layer.parameters(recurse=False):
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
    for part in teacher.text_parts.values():
        if text.precision == "bf16":
            part.to(torch.bfloat16)
        elif text.precision == "int8" and not in_8_bits(part):
            raise UsageError(
                "--model.text.precision int8: this teacher has random weights, which are not "
                "rounded. Use bf16."
            )
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
        network = backbone(networks[name])
        if not can_checkpoint(network):
            raise UsageError(
                f"--model.memory.checkpointing: {type(network).__name__} does not support "
                "it. Leave the option out, and lower --model.micro_batch_size."
            )
        enable_checkpointing(networks[name])


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

    The recomputed numbers are the same, so gradients are bitwise equal. A sharded network frees its
    blocks in the recomputation, as in any other forward pass.
    """
    return partial(
        checkpoint,
        function,
        use_reentrant=False,
        preserve_rng_state=False,
        context_fn=lambda: (nullcontext(), recomputation()),
    )


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
