"""Stable Diffusion 1 and 2 as teachers: UNet, KL autoencoder, one CLIP text encoder."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMScheduler,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from sid_lsg.files.loading import explained, load_network
from sid_lsg.images.pixels import from_uint8
from sid_lsg.messages.checks import beside
from sid_lsg.method.conditioning import Conditioning, expand
from sid_lsg.method.schedule import DiscreteSchedule
from sid_lsg.teachers.base import Teacher, Tokenize, Tokens
from sid_lsg.teachers.layout import locate_parts
from sid_lsg.teachers.stable_diffusion_parts import check_parts, latent_size, vae_factor
from sid_lsg.teachers.text import PromptEncoder, cut_off, tokenize
from sid_lsg.teachers.untrained import ARCHITECTURES, Architecture, configured, untrained

_REMEDY = (
    "Give a folder in Stable Diffusion's diffusers layout with safetensors weights, or a Hub id "
    "that this machine can reach."
)
COMPONENTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
_LEAST_SIGNAL = 2.0**-24  # last abar under zero terminal SNR, as in diffusers' Euler scheduler


class StableDiffusion(Teacher):
    """A model in Stable Diffusion's layout: UNet, KL autoencoder, one CLIP text encoder."""

    network_name = "unet"
    architectures: ClassVar[Mapping[str, Architecture]] = ARCHITECTURES
    network: UNet2DConditionModel

    def __init__(
        self,
        unet: UNet2DConditionModel,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        scheduler: DDPMScheduler,
        resolution: int | None = None,
        option: str = "model.teacher",
    ) -> None:
        """Combine the parts, check that they fit, and freeze them.

        Args:
            unet: The denoiser.
            vae: The autoencoder.
            text_encoder: The text encoder.
            tokenizer: The text encoder's tokenizer.
            scheduler: Gives the betas and the prediction type.
            resolution: Pixels per side of an image; by default the UNet's.
            option: The option that named the model, for messages.

        Raises:
            UsageError: If the parts are not Stable Diffusion's, or cannot take the resolution.
        """
        super().__init__()
        check_parts(unet, vae, text_encoder, scheduler, option)
        self.network = unet
        self.vae = vae
        self.text = PromptEncoder(tokenizer, text_encoder)
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
        self.freeze()

    @classmethod
    def from_pretrained(
        cls,
        model: str,
        revision: str | None = None,
        variant: str | None = None,
        subfolders: Mapping[str, str] | None = None,
        resolution: int | None = None,
        option: str = "model.teacher",
    ) -> "StableDiffusion":
        """Load a folder or Hub id in Stable Diffusion's layout.

        The arguments and errors are those of `families.load`.
        """
        source, where = _locate(model, subfolders, option, revision)
        common: dict[str, Any] = {"revision": revision}
        weights = common | {"variant": variant}

        def load(part: Any, name: str, **options: Any) -> Any:
            with explained(f"--{option}: could not load the {name} of {model!r}", _REMEDY):
                if "variant" in options:
                    return load_network(part, source, subfolder=where[name], **options)
                return part.from_pretrained(source, subfolder=where[name], **options)

        # Without this argument, diffusers warns if `accelerate` is not installed.
        plain = weights | {"torch_dtype": torch.float32, "low_cpu_mem_usage": False}
        # Under another default device, transformers would require `accelerate`.
        with torch.device("cpu"):
            return cls(
                unet=load(UNet2DConditionModel, "unet", **plain),
                vae=load(AutoencoderKL, "vae", **plain),
                text_encoder=load(CLIPTextModel, "text_encoder", dtype=torch.float32, **weights),
                tokenizer=load(CLIPTokenizer, "tokenizer", **common),
                scheduler=load(DDPMScheduler, "scheduler", **common),
                resolution=resolution,
                option=option,
            )

    @classmethod
    def outline(
        cls,
        model: str,
        revision: str | None = None,
        subfolders: Mapping[str, str] | None = None,
        resolution: int | None = None,
        option: str = "model.teacher",
    ) -> "StableDiffusion":
        """Make the model of a folder or Hub id on the meta device, from its configuration files."""
        source, where = _locate(model, subfolders, option, revision)
        parts = configured(model, source, where, revision, option)
        return cls(*parts, resolution, option).to("meta")

    @classmethod
    def build(
        cls,
        name: str,
        device: str | torch.device | None = None,
        resolution: int | None = None,
        seed: int = 0,
        option: str = "model.teacher",
    ) -> "StableDiffusion":
        """Make one of `ARCHITECTURES` with random weights, at 512 pixels by default."""
        device = device or torch.get_default_device()
        return cls(*untrained(name, device, seed), resolution, option).to(device)

    @property
    def tokenizers(self) -> dict[str, Any]:
        """Return the CLIP tokenizer."""
        return {"tokenizer": self.text.tokenizer}

    @property
    def tokenize(self) -> Tokenize:
        """Return a function from prompts to `input_ids` [B, L]."""
        return partial(tokenize, self.text.tokenizer)

    def encode(self, tokens: Tokens) -> Conditioning:
        """Encode tokens into `encoder_hidden_states` [B, L, D]."""
        return {"encoder_hidden_states": self.text(tokens["input_ids"])}

    def cut_off(self, prompt: str) -> str:
        """Return the end of a prompt that exceeds the tokenizer's length; "" if none does."""
        return cut_off(self.text.tokenizer, prompt)

    def predict(
        self, network: nn.Module, x_t: Tensor, t: Tensor, condition: Conditioning
    ) -> Tensor:
        """Call the UNet once, in the precision of its weights."""
        with self.precision_of(network) as dtype:
            named = {name: value.to(dtype) for name, value in condition.items()}
            time = self.schedule.network_time(t)
            return network(x_t.to(dtype), time, return_dict=False, **named)[0].to(x_t.dtype)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents: VAE(x / scaling_factor), float32, nominally in [-1, 1], not clipped."""
        scaled = latents.to(self.vae.dtype) / self.vae.config.scaling_factor
        return self.vae.decode(scaled, return_dict=False)[0].float()

    @torch.no_grad()
    def encode_images(self, images: Tensor) -> Tensor:
        """Encode images: mean of the VAE posterior (not a sample) times scaling_factor, float32."""
        pixels = from_uint8(images).to(self.vae.dtype)
        posterior = self.vae.encode(pixels, return_dict=False)[0]
        return posterior.mean.float() * self.vae.config.scaling_factor

    def end_of_encoder(self, network: nn.Module) -> nn.Module:
        """Return the UNet's last down block; the middle block follows."""
        down_blocks: Any = network.down_blocks
        return down_blocks[-1]

    def pipeline(self, network: nn.Module, scheduler: Any) -> StableDiffusionPipeline:
        """Make a stock pipeline from a UNet, a scheduler and the teacher's other parts."""
        pipeline = StableDiffusionPipeline(
            vae=self.vae,
            text_encoder=self.text.text_encoder,
            tokenizer=self.text.tokenizer,
            unet=network,
            scheduler=scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

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
        """Sample the teacher with DDIM in a diffusers pipeline."""
        scheduler = DDIMScheduler.from_config(self.scheduler_config, clip_sample=False)
        (condition,) = self.encode_prompts(prompts).values()
        # Encoded again, because `null_condition` is cached in the precision of the training.
        (null,) = expand(self.encode_null(), len(prompts)).values()
        with self.precision_of(self.network):  # only of the UNet: the text is already encoded
            latents = self.pipeline(self.network, scheduler)(
                prompt_embeds=condition,
                negative_prompt_embeds=null,
                num_inference_steps=num_steps,
                guidance_scale=guidance,
                generator=[torch.Generator().manual_seed(seed) for seed in seeds],
                height=self.image_size[0],
                width=self.image_size[1],
                output_type="latent",
            ).images
        return self.decode(latents)


def _locate(
    model: str, subfolders: Mapping[str, str] | None, option: str, revision: str | None
) -> tuple[str, dict[str, str]]:
    names = "Stable Diffusion", StableDiffusionPipeline.__name__
    return locate_parts(model, COMPONENTS, subfolders, option, *names, revision)
