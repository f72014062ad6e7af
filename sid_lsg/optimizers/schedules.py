"""A learning rate that warms up, and then stays or falls to zero."""

import math
from typing import Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from sid_lsg.messages.checks import refuse

Shape = Literal["constant", "linear", "cosine"]


class WarmUp(LambdaLR):
    """Scale the learning rate linearly from 0 up to 1, then by a constant or falling factor.

    After i iterations the factor is (i + 1) / (warmup + 1) during the warm-up. Then it is 1, or
    falls from 1 to 0 at `total_iterations` along a line or half a cosine.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        warmup_iterations: int = 0,
        total_iterations: int | None = None,
        shape: Shape = "constant",
    ) -> None:
        """Set the schedule.

        Args:
            optimizer: The optimizer.
            warmup_iterations: Iterations of the warm-up.
            total_iterations: The iteration at which a falling rate reaches 0: --trainer.max_steps.
            shape: constant, linear or cosine.

        Raises:
            UsageError: If the numbers do not make a schedule.
        """
        option = "model.lr_scheduler_*.init_args"
        if warmup_iterations < 0:
            refuse(f"{option}.warmup_iterations", warmup_iterations, "at least 0")
        if shape != "constant" and (total_iterations or 0) <= warmup_iterations:
            wanted = f"more than the warm-up's {warmup_iterations} with shape {shape}"
            refuse(f"{option}.total_iterations", total_iterations, wanted)
        self.warmup_iterations, self.shape = warmup_iterations, shape
        self.total_iterations = total_iterations
        super().__init__(optimizer, self._factor)

    def _factor(self, iteration: int) -> float:
        if iteration < self.warmup_iterations:
            return (iteration + 1) / (self.warmup_iterations + 1)
        if self.shape == "constant" or self.total_iterations is None:
            return 1.0
        falling = self.total_iterations - self.warmup_iterations
        left = max(0.0, (self.total_iterations - iteration) / falling)
        return left if self.shape == "linear" else (1 - math.cos(math.pi * left)) / 2
