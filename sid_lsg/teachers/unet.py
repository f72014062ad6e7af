"""What Stable Diffusion 1, 2 and XL share: a UNet, discrete timesteps and a KL autoencoder."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler, EulerDiscreteScheduler, UNet2DConditionModel
from torch import Tensor, nn

from sid_lsg.messages.checks import beside
from sid_lsg.method.conditioning import Conditioning, expand
from sid_lsg.method.schedule import DiscreteSchedule
from sid_lsg.teachers.assembled import AssembledTeacher
from sid_lsg.teachers.autoencoder import decode, encode, vae_factor
from sid_lsg.teachers.unet_parts import latent_size

_LEAST_SIGNAL = 2.0**-24  # last abar under zero terminal SNR, as in diffusers' Euler scheduler


class UNetTeacher(AssembledTeacher):
    """A latent diffusion model with a UNet that predicts at integer timesteps."""

    network_name = "unet"
    network: UNet2DConditionModel
    vae: AutoencoderKL

    def __init__(
        self,
        unet: UNet2DConditionModel,
        vae: AutoencoderKL,
        scheduler: DDPMScheduler,
        resolution: int | None,
        option: str,
    ) -> None:
        """Set the network, the autoencoder, the schedule and the sizes.

        Args:
            unet: The denoiser.
            vae: The autoencoder.
            scheduler: Gives the betas and the prediction type.
            resolution: Pixels per side of an image; by default the UNet's.
            option: The option that named the model, for messages.

        Raises:
            UsageError: If the networks cannot take the resolution.
        """
        super().__init__()
        self.network = unet
        self.vae = vae
        self.scheduler_config = dict(scheduler.config)
        self.schedule = DiscreteSchedule.from_alphas_cumprod(
            scheduler.alphas_cumprod, scheduler.config.prediction_type
        )
        height, width = latent_size(unet, vae, resolution, beside(option, "resolution"))
        self.latent_shape = (unet.config.in_channels, height, width)
        self.image_size = (height * vae_factor(vae), width * vae_factor(vae))
        if resolution is not None:
            # So that exported generators sample at this resolution by default.
            unet.register_to_config(sample_size=self.latent_shape[1])

    @abstractmethod
    def arguments(self, condition: Conditioning, dtype: torch.dtype) -> dict[str, Any]:
        """Return conditioning as arguments of the UNet, for inputs of a dtype."""

    @abstractmethod
    def embeddings(self, condition: Conditioning) -> dict[str, Tensor]:
        """Return conditioning as arguments of the pipeline."""

    @abstractmethod
    def reference_scheduler(self) -> Any:
        """Return the diffusers scheduler that `sample_reference` uses."""

    def predict(
        self, network: nn.Module, x_t: Tensor, t: Tensor, condition: Conditioning
    ) -> Tensor:
        """Call the UNet once, in the precision of its weights."""
        with self.precision_of(network) as dtype:
            named = self.arguments(condition, dtype)
            time = self.schedule.network_time(t)
            return network(x_t.to(dtype), time, return_dict=False, **named)[0].to(x_t.dtype)

    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents: VAE(x / scaling_factor), float32, nominally in [-1, 1], not clipped."""
        return decode(self.vae, latents)

    def encode_images(self, images: Tensor) -> Tensor:
        """Encode images: mean of the VAE posterior (not a sample) times scaling_factor, float32."""
        return encode(self.vae, images)

    def end_of_encoder(self, network: nn.Module) -> nn.Module:
        """Return the UNet's last down block; the middle block follows."""
        down_blocks: Any = network.down_blocks
        return down_blocks[-1]

    def predicted_by(self, scheduler_config: Mapping[str, Any]) -> str:
        """Return a scheduler's prediction_type; diffusers' default is epsilon."""
        return str(scheduler_config.get("prediction_type", "epsilon"))

    def scheduler_options(self, t_init: int) -> dict[str, Any]:
        """Return the first t_init + 1 betas and the prediction type."""
        betas = DDPMScheduler.from_config(self.scheduler_config).betas[: t_init + 1]
        return {
            "num_train_timesteps": t_init + 1,
            "trained_betas": betas.tolist(),
            "prediction_type": self.schedule.prediction_type,
        }

    def one_step_scheduler(self, t_init: int) -> EulerDiscreteScheduler:
        """Return an Euler scheduler over the first t_init + 1 betas.

        A generator's input is sigma_t z at t = t_init, and its output is the x_0-estimate there:
        an Euler step from the last of these betas to zero noise.
        """
        options = self.scheduler_options(t_init)
        betas = torch.tensor(options["trained_betas"])
        if betas[-1] == 1:  # zero terminal SNR, where an Euler step is infinite
            betas[-1] = 1 - _LEAST_SIGNAL / (1 - betas[:-1]).prod()
        options["trained_betas"] = betas.tolist()
        return EulerDiscreteScheduler(
            timestep_spacing="trailing",
            steps_offset=1,  # unused by this spacing; diffusers warns about any other value
            **options,
        )

    @torch.no_grad()
    def sample_reference(
        self, prompts: Sequence[str], seeds: Sequence[int], num_steps: int, guidance: float
    ) -> Tensor:
        """Sample the teacher in its diffusers pipeline, with `reference_scheduler`."""
        given = self.embeddings(self.encode_prompts(prompts))
        # Encoded again, because `null_condition` is cached in the precision of the training.
        null = self.embeddings(expand(self.encode_null(), len(prompts)))
        pipeline = self.pipeline(self.network, self.reference_scheduler())
        # Only of the UNet: the text is already encoded.
        with self.precision_of(self.network) as dtype:
            for name, part in pipeline.components.items():
                if name.startswith("text_encoder"):
                    setattr(pipeline, name, _Encoded(part.config, self.network.device, dtype))
            latents = pipeline(
                **given,
                **{f"negative_{name}": value for name, value in null.items()},
                num_inference_steps=num_steps,
                guidance_scale=guidance,
                generator=[torch.Generator().manual_seed(seed) for seed in seeds],
                height=self.image_size[0],
                width=self.image_size[1],
                output_type="latent",
            ).images
        return self.decode(latents)


class _Encoded(nn.Module):
    """Stand in for a text encoder whose features are given.

    Pipelines convert features and latents to the text encoder's dtype, which would be wrong for
    an encoder in 16 bits.
    """

    def __init__(self, config: Any, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        self.config, self.device, self.dtype = config, device, dtype
