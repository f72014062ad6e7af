"""The forward diffusion x_t = alpha_t x_0 + sigma_t eps, and what a network predicts at x_t.

Symbols: x_0 a clean latent, eps standard normal noise, x_t the noisy latent at time t.

Options give times as integer timesteps 0..T-1 for every schedule. t is the schedule's own time: the
same integers, or a real number. The method uses only the interface of `Schedule`, so discrete
diffusion and flow matching share everything else.
"""

from abc import ABC, abstractmethod
from typing import ClassVar, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from sid_lsg.method.randomness import integers
from sid_lsg.method.shapes import per_sample

PredictionType = Literal["epsilon", "v_prediction"]
PREDICTION_TYPES: tuple[str, ...] = get_args(PredictionType)


class Defaults(NamedTuple):
    """The choices in which the published runs of two kinds of teachers differ.

    Attributes:
        t_init: The generator's first timestep.
        step_training: Steps of the generator that the gradient flows through: "all" or "last".
        weighting: Weighting of the generator's loss, by its name in `weighting`.
        prompt_dropout: Probability of dropping a prompt in phase 1.
    """

    t_init: int
    step_training: str
    weighting: str
    prompt_dropout: float


class Schedule(nn.Module, ABC):
    """alpha_t and sigma_t, the prediction type of the networks, and the times that are used.

    Latents are [B, ...] of any shape and `t` is [B].

    Attributes:
        prediction_type: What the networks predict, by diffusers' name.
        time_dtype: The dtype of `t`.
        defaults: What the published runs of such teachers use.
    """

    defaults: ClassVar[Defaults]
    prediction_type: str
    time_dtype: torch.dtype

    @abstractmethod
    def __len__(self) -> int:
        """Return T, the number of timesteps."""

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """Return the signal scale alpha_t: [B]."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """Return the noise scale sigma_t: [B]."""

    @abstractmethod
    def x0(self, prediction: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """Convert a network's prediction at x_t to an estimate of x_0."""

    @abstractmethod
    def target(self, x_0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """Return what a network should predict at x_t."""

    @abstractmethod
    def error_weight(self, t: Tensor) -> Tensor:
        """Return the weight of the fake score's squared error: [B]."""

    @abstractmethod
    def draw_times(self, bits: Tensor, tmin: int, tmax: int) -> Tensor:
        """Draw the times at which the losses are evaluated.

        Args:
            bits: [B, 2] int64, uniform in [0, 2**32): enough for an integer or a normal number.
            tmin: Smallest timestep.
            tmax: Largest timestep, plus one.

        Returns:
            [B] of `time_dtype`.
        """

    @abstractmethod
    def generator_times(self, t_init: int, num_steps: int) -> list[float]:
        """Return the times at which a K-step generator is evaluated, the noisiest first.

        Args:
            t_init: The first timestep.
            num_steps: K.
        """

    def add_noise(self, x_0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """Diffuse: x_t = alpha_t x_0 + sigma_t eps (Ho et al., 2020)."""
        return per_sample(self.alpha(t), x_0) * x_0 + per_sample(self.sigma(t), eps) * eps

    def implied_noise(self, x_0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """Return the noise between an estimate of x_0 and x_t: (x_t - alpha_t x_0) / sigma_t."""
        return (x_t - per_sample(self.alpha(t), x_0) * x_0) / per_sample(self.sigma(t), x_t)

    def network_time(self, t: Tensor) -> Tensor:
        """Return the time to pass to the networks; by default t itself."""
        return t


class DiscreteSchedule(Schedule):
    """Diffusion at integer timesteps (Ho et al., 2020): Stable Diffusion 1 and 2, SDXL.

    For a variance-preserving schedule alpha_t = sqrt(abar_t) and sigma_t = sqrt(1 - abar_t), with
    abar the cumulative product of 1 - beta (`alphas_cumprod` in diffusers).
    """

    # SiD-LSG's official code (method.md).
    defaults = Defaults(625, "all", "sid", 0.1)
    time_dtype = torch.int64
    alphas: Tensor
    sigmas: Tensor

    def __init__(
        self, alphas: Tensor, sigmas: Tensor, prediction_type: PredictionType = "epsilon"
    ) -> None:
        """Store the schedule.

        Args:
            alphas: [T] signal scale at each timestep.
            sigmas: [T] noise scale at each timestep.
            prediction_type: What the networks predict: eps, or v = alpha_t eps - sigma_t x_0.
        """
        super().__init__()
        # Not persistent: the schedule comes from the teacher, never from a checkpoint.
        self.register_buffer("alphas", alphas.float(), persistent=False)
        self.register_buffer("sigmas", sigmas.float(), persistent=False)
        self.prediction_type = prediction_type

    @classmethod
    def from_alphas_cumprod(
        cls, alphas_cumprod: Tensor, prediction_type: PredictionType
    ) -> "DiscreteSchedule":
        """Make the variance-preserving schedule of `alphas_cumprod` [T]."""
        return cls(alphas_cumprod.sqrt(), (1.0 - alphas_cumprod).sqrt(), prediction_type)

    def __len__(self) -> int:
        return len(self.alphas)

    def alpha(self, t: Tensor) -> Tensor:
        """Look up alpha_t: [B]."""
        return self.alphas[t]

    def sigma(self, t: Tensor) -> Tensor:
        """Look up sigma_t: [B]."""
        return self.sigmas[t]

    def velocity(self, x_0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """Return v = alpha_t eps - sigma_t x_0 (Salimans & Ho, 2022)."""
        return per_sample(self.alpha(t), eps) * eps - per_sample(self.sigma(t), x_0) * x_0

    def x0(self, prediction: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """Return the estimate of x_0 (method.md, generator); nothing is clipped.

        epsilon: x_0 = (x_t - sigma_t eps) / alpha_t; v: x_0 = alpha_t x_t - sigma_t v.
        """
        alpha, sigma = per_sample(self.alpha(t), x_t), per_sample(self.sigma(t), x_t)
        if self.prediction_type == "v_prediction":
            return alpha * x_t - sigma * prediction
        return (x_t - sigma * prediction) / alpha

    def target(self, x_0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """Return eps, or v (method.md, phase 1)."""
        if self.prediction_type == "v_prediction":
            return self.velocity(x_0, eps, t)
        return eps

    def error_weight(self, t: Tensor) -> Tensor:
        """Return the factor from the squared error to that of eps: [B] (method.md, phase 1).

        1 for epsilon. For v at a given x_t, eps = alpha_t v + sigma_t x_t, so the error of eps is
        alpha_t times that of v: the weight is alpha_t^2 = snr / (snr + 1).
        """
        if self.prediction_type == "v_prediction":
            return self.alpha(t) ** 2
        return torch.ones_like(self.alpha(t))

    def draw_times(self, bits: Tensor, tmin: int, tmax: int) -> Tensor:
        """Draw t uniformly from the integers tmin..tmax-1 (method.md, one iteration)."""
        return integers(bits[:, 0], tmin, tmax)

    def generator_times(self, t_init: int, num_steps: int) -> list[float]:
        """Return t_i = trunc(t_init (1 - i / K)), i = 0..K-1 (method.md, generator).

        625 in one step; 625, 312 in two; 625, 468, 312, 156 in four.
        """
        return [t_init * (num_steps - i) // num_steps for i in range(num_steps)]
