"""Networks that run as compiled programs (torch.compile), block by block.

A block is compiled once for each way in which it is used: with gradients for its weights, for its
inputs alone, or without. So all programs exist after the first iteration. The parameters, their
names and checkpoints stay as they are, and a copy of a network is not compiled.
"""

import inspect
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn

from sid_lsg.distributed.sharding import blocks, is_sharded
from sid_lsg.messages.errors import UsageError

_BACKEND = "inductor"

# PyTorch counts the programs of all blocks of a class together, and gives up at 8 by default.
_PROGRAMS = 512

# Where PyTorch can (2.13), a block looks for its program among its own alone. Among those of all
# blocks of its class, in three networks, the search took a fifth of the time of calling Stable
# Diffusion's UNet; a GPU at a small micro-batch waits for the CPU.
_APART = (
    {"isolate_recompiles": True}
    if "isolate_recompiles" in inspect.signature(torch.compile).parameters
    else {}
)


def compile_blocks(*networks: nn.Module) -> None:
    """Compile networks' blocks, for the shapes that they meet; each as one graph, or not at all.

    Raises:
        UsageError: If a network is sharded: its weights are gathered within the blocks.
    """
    if any(is_sharded(network) for network in networks):
        raise UsageError(
            "--model.compile cannot compile networks that fsdp2 spreads over the devices. Choose "
            "--trainer.strategy ddp_multi, or leave the option out."
        )
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _PROGRAMS)
    for network in networks:
        for block in blocks(network):
            block.compile(fullgraph=True, dynamic=False, backend=_BACKEND, **_APART)


def as_written(compiled: bool) -> AbstractContextManager[None]:
    """Run compiled networks as they are written.

    Pictures come in batches of other sizes, each of which would be compiled again, longer than the
    pictures take. What counts operations sees none of those inside a program.

    Args:
        compiled: Whether there is a compiled network.
    """
    if not compiled:
        return nullcontext()
    made: AbstractContextManager[None] = torch.compiler.set_stance("force_eager")
    return made
