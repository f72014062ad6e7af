"""The schedule of flow-matching teachers: x_t = (1 - t) x_0 + t eps with real times t.

After Liu et al. (rectified flow, arXiv 2209.03003) and SiD-DiT (arXiv 2509.25127). t is 0 at data
and 1 at noise; the networks predict the velocity v = eps - x_0. Times, noising and the estimate of
x_0 are float32 in every precision of the networks: in bfloat16, 1000 t would be 984 for t = 0.985.
"""

import math

import torch
from torch import Tensor

from sid_lsg.method.randomness import normal
from sid_lsg.method.schedule import Defaults, Schedule
from sid_lsg.method.shapes import per_sample

TIMESTEPS = 1000
"""Options give times as integers 0..999, and 999 is pure noise: t = timestep / 999."""


class FlowSchedule(Schedule):
    """alpha_t = 1 - t and sigma_t = t; the networks predict v = eps - x_0.

    Attributes:
        location: Mean of the normal variable whose sigmoid is t.
        scale: Its standard deviation.
        shift: Shift of the generator's times towards noise; 1 leaves them as they are.
        time_factor: What t is multiplied by for the networks.
        time_offset: What is added to it then.
    """

    # SiD-DiT's official code.
    defaults = Defaults(999, "last", "1_minus_sigma", 0.0)
    prediction_type = "flow_prediction"
    time_dtype = torch.float32

    def __init__(
        self,
        location: float = math.log(2),
        scale: float = 1.6,
        shift: float = 1.0,
        time_factor: float = 1000.0,
        time_offset: float = 0.0,
    ) -> None:
        """Store the options; the defaults are SiD-DiT's.

        Args:
            location: Of the times at which the losses are evaluated. log 2 gives a median of 2/3.
            scale: Of the times at which the losses are evaluated.
            shift: Of the generator's times only (`use_sd3_shift` in the official code: 3).
            time_factor: 1000 for networks that take 1000 t, 1 for those that take t, -1 for those
                that take 1 - t.
            time_offset: 1 for networks that take 1 - t.
        """
        super().__init__()
        self.location, self.scale, self.shift = location, scale, shift
        self.time_factor, self.time_offset = time_factor, time_offset

    def __len__(self) -> int:
        return TIMESTEPS

    def alpha(self, t: Tensor) -> Tensor:
        """Return 1 - t: [B]."""
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        """Return t: [B]."""
        return t

    def x0(self, prediction: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """Return the estimate x_0 = x_t - t v; nothing is clipped."""
        return x_t - per_sample(t, x_t) * prediction

    def target(self, x_0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """Return v = eps - x_0."""
        return eps - x_0

    def error_weight(self, t: Tensor) -> Tensor:
        """Return 1: the squared error of v is not weighted (SiD-DiT)."""
        return torch.ones_like(t)

    def draw_times(self, bits: Tensor, tmin: int, tmax: int) -> Tensor:
        """Draw t = sigmoid(location + scale n) with standard normal n: [B] float32.

        Neither tmin and tmax nor the generator's times limit it (SiD-DiT).
        """
        return torch.sigmoid(self.location + self.scale * normal(bits)[:, 0])

    def generator_times(self, t_init: int, num_steps: int) -> list[float]:
        """Return t_i = t_init / 999 (1 - i / K), shifted, i = 0..K-1 (SiD-DiT).

            t -> shift t / (1 + (shift - 1) t)

        From t_init = 999: 1 in one step; 1, 0.75, 0.5, 0.25 in four.
        """
        first = t_init / (TIMESTEPS - 1)
        times = [first * (1 - i / num_steps) for i in range(num_steps)]
        return [self.shift * t / (1 + (self.shift - 1) * t) for t in times]

    def network_time(self, t: Tensor) -> Tensor:
        """Return `time_factor` t + `time_offset`."""
        return self.time_factor * t + self.time_offset if self.time_offset else self.time_factor * t
