"""Networks that run as compiled programs (torch.compile), block by block.

A block is compiled once for each way in which it is used: with gradients for its weights, for its
inputs alone, or without. So all programs exist after the first iteration. The parameters, their
names and checkpoints stay as they are, and a copy of a network is not compiled.
"""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn

from sid_lsg.errors import UsageError
from sid_lsg.sharding import blocks, is_sharded

_BACKEND = "inductor"

# PyTorch counts all blocks' programs together, and gives up at 8 by default.
_PROGRAMS = 512


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
            block.compile(fullgraph=True, dynamic=False, backend=_BACKEND)


def as_written(compiled: bool) -> AbstractContextManager[None]:
    """Run compiled networks as they are written: pictures come in batches of other sizes.

    Each new size would be compiled again, which takes longer than the pictures.

    Args:
        compiled: Whether there is a compiled network.
    """
    if not compiled:
        return nullcontext()
    made: AbstractContextManager[None] = torch.compiler.set_stance("force_eager")
    return made
