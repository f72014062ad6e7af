"""Trainer strategies for data parallelism with several networks trained in turn."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.strategies import (
    DDPStrategy,
    ModelParallelStrategy,
    Strategy,
    StrategyRegistry,
)
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn
from torch.distributed.constants import default_pg_timeout
from torch.optim import Optimizer

from sid_lsg.checkpoints.io import WRITTEN, SafeCheckpointIO
from sid_lsg.checkpoints.opening import open_checkpoint
from sid_lsg.checkpoints.shards import save_shares, share
from sid_lsg.distributed.host_memory import has_room
from sid_lsg.distributed.processes import meet
from sid_lsg.distributed.sharding import is_sharded, shard, shard_like, skeleton, whole
from sid_lsg.networks.adapted import Adapted
from sid_lsg.teachers.precision import backbone, set_autocast


class _Patient(Strategy):
    """A strategy whose processes wait for a checkpoint as long as its writing takes."""

    def barrier(self, name: str | None = None) -> None:
        """Wait for all processes."""
        meet() if name == WRITTEN else super().barrier(name)


class MultiNetDDPStrategy(_Patient, DDPStrategy):
    """DDP without the `DistributedDataParallel` wrapper.

    The wrapper reduces both networks' gradients in every backward pass and holds a copy of them.
    Instead, the module reduces one network's gradients per phase.
    """

    def configure_ddp(self) -> None:
        """Broadcast the weights of rank 0 to all ranks."""
        assert self.model is not None
        for tensor in (*self.model.parameters(), *self.model.buffers()):
            dist.broadcast(tensor.detach(), src=0)


class FSDP2Strategy(_Patient, ModelParallelStrategy):
    """Shard all networks and optimizers over the processes (FSDP2).

    From both kinds of checkpoints, a run can resume with any other strategy and number of
    processes.
    """

    precision_plugin: Any

    def __init__(
        self,
        save_distributed_checkpoint: bool = False,
        process_group_backend: str | None = None,
        timeout: timedelta = default_pg_timeout,
    ) -> None:
        """Choose the kind of checkpoint and the communication.

        Args:
            save_distributed_checkpoint: Let each process write its shard into a folder. By default
                the first process gathers everything in its memory and writes the same file as a
                run on one process; the others wait.
            process_group_backend: nccl or gloo; by default chosen by device.
            timeout: Time that a process waits for the others.
        """
        super().__init__(
            save_distributed_checkpoint=save_distributed_checkpoint,
            process_group_backend=process_group_backend,
            timeout=timeout,
        )
        self._skeletons: dict[nn.Module, nn.Module] = {}
        self._half = False

    def setup_environment(self) -> None:
        """Use all processes for data parallelism.

        Lightning's default is data parallelism between machines and tensor parallelism within each.
        With bf16-mixed, FSDP2 casts the weights, and each network is under autocast by itself.
        """
        self._data_parallel_size = self.num_nodes * self.num_processes
        self._tensor_parallel_size = 1
        if self.precision_plugin.precision == "bf16-mixed":
            self._half, self.precision_plugin = True, Precision()
        super().setup_environment()

    def setup(self, trainer: L.Trainer) -> None:
        """Warn if a checkpoint has no room in the memory of the process that gathers it."""
        super().setup(trainer)
        if self.is_global_zero and not self._save_distributed_checkpoint and self.lightning_module:
            warn_if_no_room(self.lightning_module, self.optimizers)

    def shard(self, network: nn.Module) -> None:
        """Shard a network, unless it is sharded already.

        With bf16-mixed its weights are gathered in bfloat16, unless some are stored so, and it
        computes under autocast (`Teacher.precision_of`).
        """
        if is_sharded(network):
            return
        plain = skeleton(network)
        half = self._half and all(p.dtype != torch.bfloat16 for p in network.parameters())
        shard(network, self.device_mesh["data_parallel"], half)
        if half:
            set_autocast(network, torch.bfloat16)
        self._skeletons[network] = plain

    @contextmanager
    def full_parameters(self, network: nn.Module) -> Iterator[nn.Module]:
        """Yield a full copy of a sharded network on the first process' CPU. Collective.

        On the other processes the copy has no data.
        """
        base = backbone(network)
        state = self._gather(base.state_dict())
        copied = skeleton(self._skeletons[base])
        copied.load_state_dict(state, strict=self.is_global_zero, assign=True)
        yield (network.on_base(copied) if isinstance(network, Adapted) else copied).eval()

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Return the part of the module's state that this process saves."""
        assert self.lightning_module is not None
        return self._to_save(self.lightning_module.state_dict())

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Load this process' shard of a full state."""
        assert self.lightning_module is not None
        own = self.lightning_module.state_dict()
        given = checkpoint["state_dict"]
        state = {name: shard_like(value, own.get(name)) for name, value in given.items()}
        self.lightning_module.load_state_dict(state, strict=strict)

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Tell Lightning to restore optimizers from what `optimizer_state` returned."""
        return True

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Return the part of an optimizer's state that this process saves.

        Parameters have the same indices as in a single process, since sharding keeps their order.
        """
        if isinstance(optimizer, LightningOptimizer):
            optimizer = optimizer._optimizer
        state = optimizer.state_dict()
        state["state"] = {number: self._to_save(own) for number, own in state["state"].items()}
        return state

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Load this process' shard of full optimizer states."""
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            sharded = {
                number: {name: shard_like(value, parameters[number]) for name, value in own.items()}
                for number, own in state["state"].items()
            }
            optimizer.load_state_dict({**state, "state": sharded})

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None
    ) -> None:
        """Write a file as any other strategy does, or a folder of shards. Collective."""
        if self._save_distributed_checkpoint:
            save_shares(checkpoint, Path(filepath))
        elif self.is_global_zero and isinstance(self.checkpoint_io, SafeCheckpointIO):
            self.checkpoint_io.save(checkpoint, Path(filepath), gathered=True)
        elif self.is_global_zero:
            self.checkpoint_io.save_checkpoint(checkpoint, filepath, storage_options)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> Any:
        """Open a file or a folder; loading reads only this process' shard."""
        io = self.checkpoint_io
        take = io.take if isinstance(io, SafeCheckpointIO) else open_checkpoint
        return take(Path(checkpoint_path)).content

    def _to_save(self, state: Mapping[str, Any]) -> Any:
        """Return this process' shard; or the full state on the first process, {} on the others."""
        return share(state) if self._save_distributed_checkpoint else self._gather(state)

    def _gather(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """Copy the tensors one by one to the first process' CPU. Collective."""
        found = {}
        for name, value in state.items():
            if torch.is_tensor(value):
                value = whole(value)
                value = value.to("cpu", copy=True) if self.is_global_zero else None
            found[name] = value
        return found if self.is_global_zero else {}


def warn_if_no_room(module: nn.Module, optimizers: Iterable[Optimizer]) -> None:
    """Warn if the host memory has no room for the state of a module and one moment per weight."""
    moments = (
        p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]
    )
    tensors = (value for value in module.state_dict().values() if torch.is_tensor(value))
    size = sum(value.numel() * value.itemsize for value in (*tensors, *moments))
    if not has_room(size):
        rank_zero_warn(
            "--trainer.strategy fsdp2: the first process gathers each checkpoint in its memory. "
            f"There it needs at least {size / 2**30:.1f} GiB, for which there is no room. With "
            "--trainer.strategy fsdp2_sharded each process writes its own shard."
        )


def register_strategies() -> None:
    """Register the strategies' names for `--trainer.strategy`."""
    folders = {"save_distributed_checkpoint": True}
    for name, strategy, description, options in (
        ("ddp_multi", MultiNetDDPStrategy, "DDP without its wrapper, one network at a time", {}),
        ("fsdp2", FSDP2Strategy, "all networks sharded over all processes", {}),
        ("fsdp2_sharded", FSDP2Strategy, "fsdp2 with sharded checkpoints", folders),
    ):
        StrategyRegistry.register(name, strategy, description, override=True, **options)
