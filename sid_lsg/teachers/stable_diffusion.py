"""Stable Diffusion as a teacher: a diffusers folder or Hub id into networks, text and schedule."""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from sid_lsg.export.folder import save_pipeline, t_init_of
from sid_lsg.files.loading import explained
from sid_lsg.files.sources import located
from sid_lsg.images.pixels import from_uint8
from sid_lsg.messages.checks import beside
from sid_lsg.messages.errors import UsageError
from sid_lsg.method.conditioning import Conditioning, expand
from sid_lsg.method.schedule import PREDICTION_TYPES, DiscreteSchedule
from sid_lsg.teachers.base import Teacher, Tokenize, Tokens
from sid_lsg.teachers.text import PromptEncoder, tokenize

_REMEDY = (
    "Give a folder in Stable Diffusion's diffusers layout with safetensors weights, or a Hub id "
    "that this machine can reach."
)
COMPONENTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")


class StableDiffusion(Teacher):
    """A model in Stable Diffusion's layout: UNet, KL autoencoder, one CLIP text encoder."""

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
        """Put the parts together, check that they fit, and freeze them.

        Args:
            unet: The denoiser.
            vae: The autoencoder.
            text_encoder: The text encoder.
            tokenizer: Its tokenizer.
            scheduler: Holds the betas and the prediction type.
            resolution: Pixels of an image's side; by default what the UNet was trained for.
            option: The option that named the model, for messages.

        Raises:
            UsageError: If the parts are not Stable Diffusion's, or cannot take the resolution.
        """
        super().__init__()
        _check_fit(unet, vae, text_encoder, scheduler, option)
        self.network = unet
        self.vae = vae
        self.text = PromptEncoder(tokenizer, text_encoder)
        self.scheduler_config = dict(scheduler.config)
        self.schedule = DiscreteSchedule.from_alphas_cumprod(
            scheduler.alphas_cumprod, scheduler.config.prediction_type
        )
        height, width = _latent_size(unet, vae, resolution, beside(option, "resolution"))
        self.latent_shape = (unet.config.in_channels, height, width)
        self.image_size = (height * _factor(vae), width * _factor(vae))
        if resolution is not None:
            # What is exported then samples at this resolution by default.
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
        """Load from a diffusers folder or a Hub id, in float32, from safetensors alone.

        Args:
            model: Folder, Hub id, or `package:...` for a folder inside this package.
            revision: Branch, tag or commit on the Hub.
            variant: Which weight files, e.g. "fp16".
            subfolders: Where a part does not lie in the folder of its own name.
            resolution: As in `__init__`.
            option: The option that named the model, for messages.

        Raises:
            UsageError: If there is no such model, or it is not in Stable Diffusion's layout.
        """
        where = {name: name for name in COMPONENTS} | dict(subfolders or {})
        if unknown := set(where) - set(COMPONENTS):
            raise UsageError(
                f"--{beside(option, 'loading.subfolders')}: {sorted(unknown)[0]!r} is not a part "
                f"of the teacher; the parts are {', '.join(COMPONENTS)}."
            )
        source = _locate(model, where, option)
        common: dict[str, Any] = {"revision": revision}
        weights = common | {"variant": variant, "use_safetensors": True}
        weights["output_loading_info"] = True

        def load(part: Any, name: str, **options: Any) -> Any:
            what = f"--{option}: could not load the {name} of {model!r}"
            with explained(what, _REMEDY):
                loaded = part.from_pretrained(source, subfolder=where[name], **options)
                if "use_safetensors" not in options:
                    return loaded
                network, report = loaded  # libraries fill a missing weight with random numbers
                if missing := sorted(report["missing_keys"]):
                    raise ValueError(f"its weights lack {missing[0]}")
                return network

        # Diffusers would warn where `accelerate` is not installed unless this is said.
        plain = weights | {"torch_dtype": torch.float32, "low_cpu_mem_usage": False}
        # On a device that is the default for a while, transformers would want `accelerate` too.
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

    @property
    def tokenize(self) -> Tokenize:
        """The CLIP tokenizer: `input_ids` [B, L]."""
        return partial(tokenize, self.text.tokenizer)

    def encode(self, tokens: Tokens) -> Conditioning:
        """Encode prompts: `encoder_hidden_states` [B, L, D]."""
        return {"encoder_hidden_states": self.text(tokens["input_ids"])}

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
        """Encode images: the VAE posterior's mean times scaling_factor, float32, no draw."""
        pixels = from_uint8(images).to(self.vae.dtype)
        posterior = self.vae.encode(pixels, return_dict=False)[0]
        return posterior.mean.float() * self.vae.config.scaling_factor

    def end_of_encoder(self, network: nn.Module) -> nn.Module:
        """Return the UNet's last block on its way down; the middle block follows."""
        down_blocks: Any = network.down_blocks
        return down_blocks[-1]

    def pipeline(self, network: nn.Module, scheduler: Any) -> StableDiffusionPipeline:
        """Put a UNet and a scheduler into a stock diffusers pipeline with the teacher's parts."""
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

    def save_generator(
        self, network: nn.Module, folder: str | Path, t_init: int, num_steps: int = 1
    ) -> None:
        """Save a generator as a Stable Diffusion pipeline for stock diffusers, in float32.

        `pipeline(prompt, num_inference_steps=num_steps, guidance_scale=0)` samples it.
        """
        save_pipeline(self, network, Path(folder), t_init, num_steps)

    @property
    def exported_t_init(self) -> int | None:
        """The generator's timestep, if these are the parts that `save_generator` wrote."""
        return t_init_of(self.scheduler_config)

    @property
    def exported_num_steps(self) -> int | None:
        """The generator's number of steps, if these are the parts that `save_generator` wrote."""
        return None if self.exported_t_init is None else self.scheduler_config.get("num_steps", 1)

    @torch.no_grad()
    def sample_reference(
        self, prompts: Sequence[str], seeds: Sequence[int], num_steps: int, guidance: float
    ) -> Tensor:
        """Sample the teacher by DDIM through diffusers' own pipeline."""
        scheduler = DDIMScheduler.from_config(self.scheduler_config, clip_sample=False)
        (condition,) = self.encode_prompts(prompts).values()
        # Encoded anew: `null_condition` keeps what the training has encoded in its own precision.
        (null,) = expand(self.encode_prompts([""]), len(prompts)).values()
        with self.precision_of(self.network):  # of the UNet alone: text is encoded before
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


def _locate(model: str, where: Mapping[str, str], option: str) -> str:
    """Resolve a folder or Hub id; say what a folder lacks of Stable Diffusion's layout."""
    remedy = "Give a diffusers folder in Stable Diffusion's layout or a Hub id."
    source = located(model, option, remedy)
    folder = source.path
    if source.kind == "hub":
        return model
    if source.kind == "file":
        raise UsageError(
            f"--{option}: {str(folder)!r} is a file. Give a diffusers folder with the subfolders "
            f"{', '.join(COMPONENTS)}; of a whole model in one file diffusers makes it: "
            f"StableDiffusionPipeline.from_single_file({str(folder)!r}).save_pretrained(DIR)"
        )
    index = folder / "model_index.json"
    try:
        kind = (
            json.loads(index.read_text(encoding="utf-8"))["_class_name"] if index.is_file() else ""
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"--{option}: {str(index)!r} does not name a pipeline ({error}). Give a diffusers "
            "folder in Stable Diffusion's layout."
        ) from error
    missing = [name for name, path in where.items() if not (folder / path).is_dir()]
    foreign = [name for name in ("text_encoder_2", "transformer") if (folder / name).is_dir()]
    if missing or foreign:
        found = f"it lacks {', '.join(missing)}" if missing else f"it holds {', '.join(foreign)}"
        # The tools have no such option: what they take is whole.
        hint = (
            f", or name them with --{beside(option, 'loading.subfolders')}" if "." in option else ""
        )
        raise UsageError(
            f"--{option}: {str(folder)!r} is not in Stable Diffusion's layout: {found}"
            f"{f' ({kind})' if kind else ''}. Give a diffusers folder with the subfolders "
            f"{', '.join(COMPONENTS)}{hint}."
        )
    return str(folder)


def _check_fit(
    unet: UNet2DConditionModel,
    vae: AutoencoderKL,
    text: CLIPTextModel,
    scheduler: DDPMScheduler,
    option: str,
) -> None:
    """Refuse parts that are loaded well but do not make a Stable Diffusion."""
    problem = None
    if unet.config.in_channels != vae.config.latent_channels:
        problem = (
            f"its UNet takes {unet.config.in_channels} channels and its VAE's latents have "
            f"{vae.config.latent_channels} (an inpainting or upscaling model?)"
        )
    elif unet.config.cross_attention_dim != text.config.hidden_size:
        problem = (
            f"its UNet attends to {unet.config.cross_attention_dim} features and its text encoder "
            f"gives {text.config.hidden_size}"
        )
    elif unet.config.addition_embed_type or unet.config.class_embed_type:
        problem = "its UNet wants more than a timestep and a prompt (SDXL or a variant of it?)"
    elif scheduler.config.prediction_type not in PREDICTION_TYPES:
        problem = (
            f"its scheduler's prediction_type is {scheduler.config.prediction_type!r}, not one of "
            f"{', '.join(PREDICTION_TYPES)}"
        )
    if problem:
        raise UsageError(
            f"--{option}: {problem}. Give a text-to-image model of Stable Diffusion 1 or 2."
        )


def _factor(vae: AutoencoderKL) -> int:
    """Return how many pixels of an image's side make one of a latent's."""
    return int(2 ** (len(vae.config.block_out_channels) - 1))


def _latent_size(
    unet: UNet2DConditionModel, vae: AutoencoderKL, resolution: int | None, option: str
) -> tuple[int, int]:
    """Return the latents' height and width, which the UNet must be able to halve at every level."""
    factor = _factor(vae)
    if resolution is None:
        size = unet.config.sample_size
        if size is None:
            raise UsageError(
                f"--{option} is missing: this teacher's UNet does not say for what size it was "
                "trained. Give the side of an image in pixels, for example 512."
            )
        height, width = (size, size) if isinstance(size, int) else size
        return height, width
    multiple = factor * 2 ** (len(unet.config.block_out_channels) - 1)
    if resolution < multiple or resolution % multiple:
        raise UsageError(
            f"--{option}: {resolution} pixels cannot pass this teacher's VAE (factor "
            f"{factor}) and UNet; use a positive multiple of {multiple}."
        )
    return resolution // factor, resolution // factor
