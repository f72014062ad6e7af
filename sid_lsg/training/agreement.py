"""Check that all processes start the same run: from one checkpoint, with one teacher and code.

On nodes with disks of their own, each process may find other files under the same path.
"""

import hashlib
import importlib.metadata
import socket
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import nn

from sid_lsg.checkpoints.file import fingerprint
from sid_lsg.checkpoints.opening import OpenCheckpoint
from sid_lsg.distributed.processes import gather
from sid_lsg.distributed.sharding import local
from sid_lsg.messages.errors import SharedError

_PACKAGE = Path(__file__).parents[1]
_CHECKPOINT = "ckpt_path"
_REMEDIES = {
    _CHECKPOINT: "Put --trainer.default_root_dir on a disk that all nodes share, or copy one "
    "checkpoint to the same path on all nodes",
    "data.batch_size": "Give the same command on all nodes",
    "data.prompts": "Give the same prompts on all nodes",
    "seed_everything": "Give the same command on all nodes",
    "trainer.max_steps": "Give the same command on all nodes",
    "model.teacher": "Give the same teacher on all nodes",
    "version of the code": "Install the same code on all nodes",
}
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def check_agreement(trainer: L.Trainer, module: Any, opened: OpenCheckpoint | None) -> None:
    """Compare what the processes have found. For all ranks, before the checkpoint is loaded.

    Args:
        trainer: The Trainer, with connected processes.
        module: The module, before its networks are sharded.
        opened: The checkpoint to continue from.

    Raises:
        SharedError: If they differ; the message names the nodes.
    """
    if trainer.world_size == 1:
        return
    node = f"{socket.gethostname()} (node {trainer.node_rank})"
    found = gather([(node, _facts(trainer, module, opened))])
    expected = found[0][1]
    for name in expected:
        if any(facts[name] != expected[name] for _, facts in found):
            by_node = {f"{where}: {facts[name]}": None for where, facts in found}
            option = name if " " in name else f"--{name}"
            raise SharedError(
                f"{option}: the processes differ, {'; '.join(by_node)}. {_REMEDIES[name]}."
            )


def _facts(trainer: L.Trainer, module: Any, opened: OpenCheckpoint | None) -> dict[str, str]:
    """Return what must be equal, in words, by the option that decides it."""
    data: Any = trainer.datamodule
    return {
        _CHECKPOINT: _describe(opened),
        "version of the code": _code(),
        "data.batch_size": str(data.batch_size),
        "data.prompts": _digest(data.train_prompts),
        "seed_everything": str(module.seed),
        "trainer.max_steps": str(trainer.max_steps),
        "model.teacher": weights_digest(module.teacher),
    }


def _describe(opened: OpenCheckpoint | None) -> str:
    if opened is None:
        return "no checkpoint"
    return f"a checkpoint of iteration {opened.iterations} ({fingerprint(opened.path)})"


def _code() -> str:
    """Return the versions and a digest of this package's source files."""
    texts = (path.read_bytes().decode() for path in sorted(_PACKAGE.rglob("*.py")))
    version = ""
    with suppress(importlib.metadata.PackageNotFoundError):  # a source tree, not installed
        version = importlib.metadata.version("sid-lsg")
    return f"{version} ({_digest(texts)}), torch {torch.__version__}"


def _digest(texts: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode() + b"\0")
    return digest.hexdigest()[:12]


def weights_digest(network: nn.Module) -> str:
    """Return a digest of names, shapes and bits, cheap enough for billions of weights.

    The bits are summed as integers, so the order of the sum does not matter. Of a sharded network,
    only this process's share counts.
    """
    facts = []
    for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
        tensor = local(tensor.detach())
        bits = tensor.contiguous().view(_INTEGERS[tensor.element_size()])
        facts.append(f"{name} {tensor.dtype} {list(tensor.shape)} {int(bits.sum())}")
    return _digest(facts)
