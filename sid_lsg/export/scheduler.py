"""The K-step sampling of a SiD-LSG generator, as a scheduler for diffusers.

This file needs torch and diffusers alone. It is saved with generators of several steps.
"""

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin, SchedulerOutput
from diffusers.utils.torch_utils import randn_tensor


class SiDScheduler(SchedulerMixin, ConfigMixin):
    """Start from noise at t_init, denoise, re-noise to the next timestep with fresh noise, ...

        x = 0;  for i = 0..K-1:  x = x_0-estimate at (alpha_{t_i} x + sigma_{t_i} z_i)

    with t_i = trunc(t_init (1 - i / K)) and every z_i standard normal, drawn from the generators
    that the pipeline is given. No guidance, no clipping. Any K up to t_init can be sampled.
    """

    order = 1

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 626,
        trained_betas: list[float] | None = None,
        prediction_type: str = "epsilon",
        num_steps: int = 1,
    ) -> None:
        """Take the noise schedule, which ends at the generator's first timestep.

        Args:
            num_train_timesteps: t_init + 1.
            trained_betas: The betas of the timesteps 0..t_init; by default Stable Diffusion's.
            prediction_type: What the network predicts: epsilon, or v_prediction.
            num_steps: K of the training, and where no other number is asked for.
        """
        if prediction_type not in ("epsilon", "v_prediction"):
            raise ValueError(f"prediction_type {prediction_type!r} is not epsilon or v_prediction")
        if trained_betas is None:
            betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000)[:num_train_timesteps] ** 2
        else:
            betas = torch.tensor(trained_betas, dtype=torch.float32)
        alphas_cumprod = torch.cumprod(1.0 - betas, dim=0)
        self.alphas = alphas_cumprod.sqrt()
        self.sigmas = (1.0 - alphas_cumprod).sqrt()
        self.init_noise_sigma = float(self.sigmas[-1])
        self.set_timesteps()

    def set_timesteps(
        self, num_inference_steps: int | None = None, device: str | torch.device | None = None
    ) -> None:
        """Choose K.

        Raises:
            ValueError: If it is not 1 to t_init.
        """
        steps = num_inference_steps or self.config.num_steps
        t_init = len(self.alphas) - 1
        if not 1 <= steps <= t_init:
            raise ValueError(f"num_inference_steps must be 1 to {t_init}, got {steps}")
        self.num_inference_steps = steps
        timesteps = [t_init * (steps - i) // steps for i in range(steps)]
        self.timesteps = torch.tensor(timesteps, device=device)

    def scale_model_input(
        self, sample: torch.Tensor, timestep: int | torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the sample: the network sees it as it is."""
        return sample

    def step(
        self,
        model_output: torch.Tensor,
        timestep: int | torch.Tensor,
        sample: torch.Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[torch.Tensor]:
        """Estimate x_0, and noise it to the next timestep, if there is one.

        Args:
            model_output: The network's prediction, [B, C, H, W].
            timestep: t_i.
            sample: x at t_i.
            generator: Where the fresh noise comes from.
            return_dict: Return a `SchedulerOutput` in place of a tuple.
        """
        t = int(timestep)
        prediction, x_t = model_output.float(), sample.float()
        if self.config.prediction_type == "v_prediction":
            x = self.alphas[t] * x_t - self.sigmas[t] * prediction
        else:
            x = (x_t - self.sigmas[t] * prediction) / self.alphas[t]
        later = [following for following in self.timesteps.tolist() if following < t]
        if later:
            noise = randn_tensor(x.shape, generator=generator, device=x.device, dtype=sample.dtype)
            x = self.alphas[later[0]] * x + self.sigmas[later[0]] * noise
        x = x.to(sample.dtype)
        return SchedulerOutput(prev_sample=x) if return_dict else (x,)

    def __len__(self) -> int:
        return len(self.alphas)
