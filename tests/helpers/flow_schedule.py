"""A flow-matching schedule with real times, to show what the method assumes of a schedule."""

import math

import torch
from torch import Tensor

from sid_lsg.method.randomness import normal
from sid_lsg.method.schedule import Schedule


class FlowSchedule(Schedule):
    """x_t = (1 - t) x_0 + t eps, whose networks predict v = eps - x_0 (METHOD-FLOW.md)."""

    prediction_type = "flow_prediction"
    time_dtype = torch.float32

    def __len__(self) -> int:
        return 1000

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        return t

    def x0(self, prediction: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        return x_t - t.view(-1, *[1] * (x_t.dim() - 1)) * prediction

    def target(self, x_0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        return eps - x_0

    def error_weight(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def draw_times(self, bits: Tensor, tmin: int, tmax: int) -> Tensor:
        """Draw t = sigmoid(log 2 + 1.6 n), independent of the integer range."""
        return torch.sigmoid(math.log(2) + 1.6 * normal(bits)[:, 0])

    def generator_times(self, t_init: int, num_steps: int) -> list[float]:
        """Return t_init (1 - i / K), where timestep 999 is pure noise."""
        return [t_init / 999 * (1 - i / num_steps) for i in range(num_steps)]

    def network_time(self, t: Tensor) -> Tensor:
        return 1000 * t
