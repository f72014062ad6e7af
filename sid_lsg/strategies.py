"""Data parallelism for several networks that are trained in turn."""

import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy, StrategyRegistry


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


def register_strategies() -> None:
    """Make `--trainer.strategy ddp_multi` known."""
    StrategyRegistry.register(
        "ddp_multi",
        MultiNetDDPStrategy,
        description="DDP without a wrapper, for networks that are trained in turn",
        override=True,
    )
