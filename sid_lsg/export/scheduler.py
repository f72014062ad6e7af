"""A diffusers scheduler for the K-step sampling of a SiD-LSG generator.

This file needs only torch and diffusers. It is saved with generators of several steps.
"""

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin, SchedulerOutput
from diffusers.utils.torch_utils import randn_tensor


class SiDScheduler(SchedulerMixin, ConfigMixin):
    """Start from noise at t_init, denoise, re-noise to the next timestep with fresh noise, ...

        x = 0;  for i = 0..K-1:  x = x_0-estimate at (alpha_{t_i} x + sigma_{t_i} z_i)

    where every z_i is standard normal, drawn from the pipeline's generators; or the first (fixed);
    or what the estimate of x_0 leaves of the step's input (ddim). In diffusion,
    t_i = trunc(t_init (1 - i / K)). In flow matching, alpha = 1 - t, sigma = t and
    t_i = t_init / (T - 1) (1 - i / K), shifted, and the pipeline receives 1000 t_i. No guidance, no
    clipping. K can be any number up to t_init.

    Pipelines of flow matching start from noise of scale 1. If t_0 < 1, a step at 1 before the
    others scales it by t_0; its prediction is not used.
    """

    order = 1

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 626,
        trained_betas: list[float] | None = None,
        prediction_type: str = "epsilon",
        num_steps: int = 1,
        t_init: int | None = None,
        noise: str = "fresh",
        shift: float = 1.0,
    ) -> None:
        """Set the noise schedule.

        Args:
            num_train_timesteps: t_init + 1 in diffusion; T in flow matching.
            trained_betas: The betas of the timesteps 0..t_init; by default Stable Diffusion's.
                Unused in flow matching.
            prediction_type: What the network predicts: epsilon, v_prediction or flow_prediction.
            num_steps: K of the training, and the default K.
            t_init: The first timestep in flow matching; by default T - 1.
            noise: The noise of the later steps: fresh, fixed or ddim.
            shift: Shift of the times in flow matching, t to shift t / (1 + (shift - 1) t).
        """
        if prediction_type not in ("epsilon", "v_prediction", "flow_prediction"):
            raise ValueError(
                "prediction_type must be epsilon, v_prediction or flow_prediction, got "
                f"{prediction_type!r}"
            )
        self.flow = prediction_type == "flow_prediction"
        if self.flow:
            last = num_train_timesteps - 1
            self.t_init = last if t_init is None else t_init
            self.init_noise_sigma = 1.0
            self.set_timesteps()
            return
        if trained_betas is None:
            betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000)[:num_train_timesteps] ** 2
        else:
            betas = torch.tensor(trained_betas, dtype=torch.float32)
        self.t_init = len(betas) - 1
        alphas_cumprod = torch.cumprod(1.0 - betas, dim=0)
        self.alphas = alphas_cumprod.sqrt()
        self.sigmas = (1.0 - alphas_cumprod).sqrt()
        self.init_noise_sigma = float(self.sigmas[-1])
        self.set_timesteps()

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        sigmas: list[float] | None = None,
        mu: float | None = None,
    ) -> None:
        """Set K, the number of steps, and the timesteps.

        Args:
            num_inference_steps: K.
            device: The timesteps' device.
            sigmas: What some pipelines give in place of K; only their number counts.
            mu: A shift that some pipelines compute; not used.

        Raises:
            ValueError: If K is not 1 to t_init.
        """
        given = num_inference_steps if sigmas is None else len(sigmas)
        steps = given or self.config.num_steps
        if not 1 <= steps <= self.t_init:
            raise ValueError(f"num_inference_steps must be 1 to {self.t_init}, got {steps}")
        self.num_inference_steps = steps
        if self.flow:
            first = self.t_init / (self.config.num_train_timesteps - 1)
            times = [1000 * self._shifted(first * (1 - i / steps)) for i in range(steps)]
            times = [1000.0] * (first < 1) + times
        else:
            times = [self.t_init * (steps - i) // steps for i in range(steps)]
        self.timesteps = torch.tensor(times, device=device)

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Do nothing: the steps are found by their times."""

    def _shifted(self, t: float) -> float:
        shift = self.config.shift
        return float(shift * t / (1 + (shift - 1) * t))

    def scales(self, timestep: float) -> tuple[float | torch.Tensor, float | torch.Tensor]:
        """Return alpha_t and sigma_t."""
        if self.flow:
            return 1 - timestep / 1000, timestep / 1000
        return self.alphas[int(timestep)], self.sigmas[int(timestep)]

    def scale_model_input(
        self, sample: torch.Tensor, timestep: int | torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the sample unchanged."""
        return sample

    def step(
        self,
        model_output: torch.Tensor,
        timestep: int | torch.Tensor,
        sample: torch.Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[torch.Tensor]:
        """Estimate x_0, and add noise for the next timestep, if there is one.

        Args:
            model_output: The network's prediction, [B, ...].
            timestep: t_i.
            sample: x at t_i.
            generator: Random generator of the fresh noise.
            return_dict: Return a `SchedulerOutput` instead of a tuple.
        """
        prediction, x_t, kind = model_output.float(), sample.float(), self.config.prediction_type
        first = self.timesteps[-self.num_inference_steps]
        if float(timestep) > float(first):
            x = (x_t * float(first) / 1000).to(sample.dtype)
            return SchedulerOutput(prev_sample=x) if return_dict else (x,)
        alpha, sigma = self.scales(float(timestep))
        if kind == "flow_prediction":
            x = x_t - sigma * prediction
        elif kind == "v_prediction":
            x = alpha * x_t - sigma * prediction
        else:
            x = (x_t - sigma * prediction) / alpha
        later = [time for time in self.timesteps.tolist() if time < float(timestep)]
        if float(timestep) == float(first):
            self._first_noise = x_t / sigma
        if later:
            if self.config.noise == "fixed":
                noise = self._first_noise
            elif self.config.noise == "ddim":
                noise = (x_t - alpha * x) / sigma
            else:
                noise = randn_tensor(
                    x.shape, generator=generator, device=x.device, dtype=sample.dtype
                )
            alpha, sigma = self.scales(later[0])
            x = alpha * x + sigma * noise
        x = x.to(sample.dtype)
        return SchedulerOutput(prev_sample=x) if return_dict else (x,)

    def __len__(self) -> int:
        return int(self.config.num_train_timesteps) if self.flow else len(self.alphas)
