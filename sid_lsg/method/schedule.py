"""The forward diffusion x_t = alpha_t x_0 + sigma_t eps, and what a network says about it.

Symbols: x_0 a clean latent, eps standard normal noise, x_t the noisy latent at timestep t. For a
variance-preserving schedule alpha_t = sqrt(abar_t) and sigma_t = sqrt(1 - abar_t), with abar the
cumulative product of 1 - beta (`alphas_cumprod` in diffusers).
"""

from typing import Literal, get_args

import torch
from torch import Tensor, nn

PredictionType = Literal["epsilon", "v_prediction"]
PREDICTION_TYPES: tuple[str, ...] = get_args(PredictionType)


class NoiseSchedule(nn.Module):
    """Hold alpha_t and sigma_t at the integer timesteps 0..T-1, and convert between predictions.

    Every method takes latents as [B, C, H, W] and `t` as [B] int64.
    """

    alphas: Tensor
    sigmas: Tensor

    def __init__(
        self, alphas: Tensor, sigmas: Tensor, prediction_type: PredictionType = "epsilon"
    ) -> None:
        """Take the schedule.

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
    ) -> "NoiseSchedule":
        """Make the variance-preserving schedule of `alphas_cumprod` [T]."""
        return cls(alphas_cumprod.sqrt(), (1.0 - alphas_cumprod).sqrt(), prediction_type)

    def __len__(self) -> int:
        return len(self.alphas)

    def alpha(self, t: Tensor) -> Tensor:
        """Return alpha_t as [B, 1, 1, 1]."""
        return self.alphas[t][:, None, None, None]

    def sigma(self, t: Tensor) -> Tensor:
        """Return sigma_t as [B, 1, 1, 1]."""
        return self.sigmas[t][:, None, None, None]

    def add_noise(self, x_0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """Diffuse: x_t = alpha_t x_0 + sigma_t eps."""
        return self.alpha(t) * x_0 + self.sigma(t) * eps

    def velocity(self, x_0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """Return v = alpha_t eps - sigma_t x_0 (Salimans & Ho, 2022)."""
        return self.alpha(t) * eps - self.sigma(t) * x_0

    def x0(self, prediction: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """Turn a network's prediction at x_t into its estimate of the clean latent.

        epsilon: x_0 = (x_t - sigma_t eps) / alpha_t; v: x_0 = alpha_t x_t - sigma_t v. Nothing is
        clipped.
        """
        if self.prediction_type == "v_prediction":
            return self.alpha(t) * x_t - self.sigma(t) * prediction
        return (x_t - self.sigma(t) * prediction) / self.alpha(t)

    def target(self, x_0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """Return what a network should predict at x_t."""
        if self.prediction_type == "v_prediction":
            return self.velocity(x_0, eps, t)
        return eps

    def eps_weight(self, t: Tensor) -> Tensor:
        """Return the factor [B, 1, 1, 1] that turns a prediction's squared error into that of eps.

        1 for epsilon. For v at a given x_t, eps = alpha_t v + sigma_t x_t, so the error of eps is
        alpha_t times that of v: the factor is alpha_t^2 = snr / (snr + 1).
        """
        if self.prediction_type == "v_prediction":
            return self.alpha(t) ** 2
        return torch.ones_like(self.alpha(t))
