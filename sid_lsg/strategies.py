"""Data parallelism for several networks that are trained in turn."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, StrategyRegistry
from torch import nn
from torch.optim import Optimizer

from sid_lsg.sharding import is_sharded, like, shard, skeleton, whole


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

    Checkpoints are those of one process, whole and in one file, so that a run can go on under any
    other strategy and number of processes.
    """

    precision_plugin: Any

    def __init__(self, **options: Any) -> None:
        """Take the options of `ModelParallelStrategy`; checkpoints are whole."""
        super().__init__(**options | {"save_distributed_checkpoint": False})
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
        """Return the module's whole state on the first process, nothing on the others."""
        assert self.lightning_module is not None
        return self._gather(self.lightning_module.state_dict())

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Load a whole state."""
        assert self.lightning_module is not None
        own = self.lightning_module.state_dict()
        given = checkpoint["state_dict"]
        state = {name: like(value, own.get(name)) for name, value in given.items()}
        self.lightning_module.load_state_dict(state, strict=strict)

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Let Lightning hand back what `optimizer_state` gave it."""
        return True

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Return an optimizer's whole state on the first process, nothing on the others.

        Its parameters have the numbers that they have on a single process: sharding leaves the
        order of a network's parameters as it is.
        """
        if isinstance(optimizer, LightningOptimizer):
            optimizer = optimizer._optimizer
        state = optimizer.state_dict()
        state["state"] = {number: self._gather(own) for number, own in state["state"].items()}
        return state if self.is_global_zero else {}

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Load whole states."""
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            sharded = {
                number: {
                    name: like(value, parameters[number]) if torch.is_tensor(value) else value
                    for name, value in own.items()
                }
                for number, own in state["state"].items()
            }
            optimizer.load_state_dict({**state, "state": sharded})

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> Any:
        """Read a file as any other strategy does."""
        return self.checkpoint_io.load_checkpoint(checkpoint_path, weights_only=weights_only)

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
    """Make `--trainer.strategy ddp_multi` and `fsdp2` known."""
    for name, strategy, description in (
        ("ddp_multi", MultiNetDDPStrategy, "DDP without a wrapper, for networks trained in turn"),
        ("fsdp2", FSDP2Strategy, "all networks sharded over all processes"),
    ):
        StrategyRegistry.register(name, strategy, description=description, override=True)
