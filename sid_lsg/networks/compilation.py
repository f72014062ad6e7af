"""Compile networks block by block with torch.compile.

A block is compiled once for each way it is used: with gradients for its weights, only for its
inputs, and without gradients. All graphs are compiled in the first iteration. Parameters, their
names and checkpoints do not change. A copy of a compiled network is not compiled.
"""

import inspect
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from sid_lsg.distributed.sharding import blocks, is_sharded

_BACKEND = "inductor"

# PyTorch counts the graphs of all blocks of a class together and stops at these, by default at 8
# and 256. Qwen-Image's 60 blocks have more than 300 graphs.
_LIMITS = {"recompile_limit": 512, "accumulated_recompile_limit": 2**16}

# With PyTorch 2.13 or later, a block looks up its graph only among its own. Searching the graphs of
# all blocks of its class, in three networks, took a fifth of the time of calling Stable Diffusion
# 1.5's network, and at small micro-batches the GPU waits for the CPU.
_ISOLATED = (
    {"isolate_recompiles": True}
    if "isolate_recompiles" in inspect.signature(torch.compile).parameters
    else {}
)


def compile_blocks(*networks: nn.Module) -> None:
    """Compile the networks' blocks with static shapes, each as one graph without graph breaks.

    FSDP2 gathers the weights of a sharded network's block in hooks, which stay outside the graph.
    """
    for name, least in _LIMITS.items():
        setattr(torch._dynamo.config, name, max(getattr(torch._dynamo.config, name), least))
    how: dict[str, Any] = {"fullgraph": True, "dynamic": False, "backend": _BACKEND, **_ISOLATED}
    for network in networks:
        for block in blocks(network):
            if is_sharded(network):
                block.forward = torch.compile(block.forward, **how)
            else:
                block.compile(**how)


def as_written(compiled: bool) -> AbstractContextManager[None]:
    """Run compiled networks eagerly within the context.

    Images are generated in batches of other sizes; compiling for each would take longer than
    generating them. Counting operations also needs eager mode.

    Args:
        compiled: Whether any network is compiled.
    """
    if not compiled:
        return nullcontext()
    made: AbstractContextManager[None] = torch.compiler.set_stance("force_eager")
    return made
