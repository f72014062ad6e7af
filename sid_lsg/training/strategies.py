"""Data parallelism for several networks that are trained in turn."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, StrategyRegistry
from torch import nn
from torch.distributed.constants import default_pg_timeout
from torch.optim import Optimizer

from sid_lsg.checkpoints.io import SafeCheckpointIO
from sid_lsg.checkpoints.opening import open_checkpoint
from sid_lsg.checkpoints.shards import save_shares, share
from sid_lsg.distributed.sharding import is_sharded, shard, shard_like, skeleton, whole


class MultiNetDDPStrategy(DDPStrategy):
    """One process per device and no `DistributedDataParallel` wrapper.

    The wrapper reduces both networks' gradients in every backward pass and holds a copy of them;
    the module reduces one network's per phase instead.
    """

    def configure_ddp(self) -> None:
        """Give every rank the weights of rank 0."""
        assert self.model is not None
        for tensor in (*self.model.parameters(), *self.model.buffers()):
            dist.broadcast(tensor.detach(), src=0)


class FSDP2Strategy(ModelParallelStrategy):
    """Every process stores a share of all networks and optimizers (FSDP2).

    A run can go on under any other strategy and number of processes, whichever of the two kinds of
    checkpoints it writes.
    """

    precision_plugin: Any

    def __init__(
        self,
        save_distributed_checkpoint: bool = False,
        process_group_backend: str | None = None,
        timeout: timedelta = default_pg_timeout,
    ) -> None:
        """Choose what is written.

        Args:
            save_distributed_checkpoint: Whether each process writes its share, into a folder. By
                default the first one gathers everything and writes the file that one process alone
                would have written, which takes it as much memory and the others' time.
            process_group_backend: nccl or gloo; by default what suits the devices.
            timeout: How long a process waits for the others.
        """
        super().__init__(
            save_distributed_checkpoint=save_distributed_checkpoint,
            process_group_backend=process_group_backend,
            timeout=timeout,
        )
        self._skeletons: dict[nn.Module, nn.Module] = {}
        self._half = False

    def setup_environment(self) -> None:
        """Use all processes for data: by default, those of a machine would do the same work.

        In bf16-mixed precision the networks get their weights and inputs in bfloat16, so that
        autocast, which wants weights in float32, has nothing left to do.
        """
        self._data_parallel_size = self.num_nodes * self.num_processes
        self._tensor_parallel_size = 1
        if self.precision_plugin.precision == "bf16-mixed":
            self._half, self.precision_plugin = True, Precision()
        super().setup_environment()

    def shard(self, network: nn.Module) -> None:
        """Shard a network, once."""
        if is_sharded(network):
            return
        plain = skeleton(network)
        shard(network, self.device_mesh["data_parallel"], self._half)
        self._skeletons[network] = plain

    @contextmanager
    def full_parameters(self, network: nn.Module) -> Iterator[nn.Module]:
        """Give the first process a whole copy of a sharded network, on the CPU. For all processes.

        The others get one without numbers.
        """
        state = self._gather(network.state_dict())
        copied = skeleton(self._skeletons[network])
        copied.load_state_dict(state, strict=self.is_global_zero, assign=True)
        yield copied.eval()

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Return what this process saves of the module."""
        assert self.lightning_module is not None
        return self._to_save(self.lightning_module.state_dict())

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Load this process' share of a whole state."""
        assert self.lightning_module is not None
        own = self.lightning_module.state_dict()
        given = checkpoint["state_dict"]
        state = {name: shard_like(value, own.get(name)) for name, value in given.items()}
        self.lightning_module.load_state_dict(state, strict=strict)

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Let Lightning hand back what `optimizer_state` gave it."""
        return True

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Return what this process saves of an optimizer.

        Its parameters have the numbers that they have on a single process: sharding leaves the
        order of a network's parameters as it is.
        """
        if isinstance(optimizer, LightningOptimizer):
            optimizer = optimizer._optimizer
        state = optimizer.state_dict()
        state["state"] = {number: self._to_save(own) for number, own in state["state"].items()}
        return state

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Load this process' share of whole states."""
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
        """Write a file, as any other strategy does, or a folder of shares. For all processes."""
        if self._save_distributed_checkpoint:
            save_shares(checkpoint, Path(filepath))
        elif self.is_global_zero:
            self.checkpoint_io.save_checkpoint(checkpoint, filepath, storage_options)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> Any:
        """Open a file or a folder; loading reads this process' share of it."""
        io = self.checkpoint_io
        take = io.take if isinstance(io, SafeCheckpointIO) else open_checkpoint
        return take(Path(checkpoint_path)).content

    def _to_save(self, state: Mapping[str, Any]) -> Any:
        """Return this process' share; or everything to the first process, nothing to the others."""
        return share(state) if self._save_distributed_checkpoint else self._gather(state)

    def _gather(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """Put tensors together one by one, on the first process' CPU."""
        found = {}
        for name, value in state.items():
            if torch.is_tensor(value):
                value = whole(value)
                value = value.cpu() if self.is_global_zero else None
            found[name] = value
        return found if self.is_global_zero else {}


def register_strategies() -> None:
    """Make the names for `--trainer.strategy` known."""
    folders = {"save_distributed_checkpoint": True}
    for name, strategy, description, options in (
        ("ddp_multi", MultiNetDDPStrategy, "DDP without a wrapper, for networks in turn", {}),
        ("fsdp2", FSDP2Strategy, "all networks sharded over all processes", {}),
        ("fsdp2_sharded", FSDP2Strategy, "the same, and checkpoints sharded too", folders),
    ):
        StrategyRegistry.register(name, strategy, description, override=True, **options)
