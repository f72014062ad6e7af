"""SDXL as a teacher: UNet, KL autoencoder, two CLIP text encoders, sizes as conditioning."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    EulerDiscreteScheduler,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from sid_lsg.method.conditioning import Conditioning
from sid_lsg.teachers.base import Tokenize, Tokens
from sid_lsg.teachers.checks import Fields
from sid_lsg.teachers.fields import CLIP_TEXT, KL_VAE, UNET
from sid_lsg.teachers.sdxl_architectures import ARCHITECTURES
from sid_lsg.teachers.text import cut_off, penultimate, tokenize
from sid_lsg.teachers.unet import UNetTeacher
from sid_lsg.teachers.unet_parts import check_parts
from sid_lsg.teachers.untrained import Architecture

BASE = "stabilityai/stable-diffusion-xl-base-1.0"
_TEXT = ("encoder_hidden_states", "text_embeds")  # conditioning that a prompt decides
_SIZES = 6  # numbers in time_ids


class SDXL(UNetTeacher):
    """A model in SDXL's layout: UNet, KL autoencoder, two CLIP text encoders."""

    family = "SDXL"
    original_layout = "sdxl"
    example = BASE
    pipeline_class = StableDiffusionXLPipeline
    parts: ClassVar[Mapping[str, type]] = {
        "unet": UNet2DConditionModel,
        "vae": AutoencoderKL,
        "text_encoder": CLIPTextModel,
        "text_encoder_2": CLIPTextModelWithProjection,
        "tokenizer": CLIPTokenizer,
        "tokenizer_2": CLIPTokenizer,
        "scheduler": DDPMScheduler,
    }
    vae_scale = 0.13025
    fields: ClassVar[Mapping[str, Fields]] = {
        "unet": UNET.but(addition_embed_type=("text_time",)),
        "vae": KL_VAE.but(latents_mean=(...,), latents_std=(...,)),
        "text_encoder": CLIP_TEXT,
        "text_encoder_2": CLIP_TEXT,
    }
    architectures: ClassVar[Mapping[str, Architecture]] = ARCHITECTURES
    time_ids: Tensor

    def __init__(
        self,
        unet: UNet2DConditionModel,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        text_encoder_2: CLIPTextModelWithProjection,
        tokenizer: CLIPTokenizer,
        tokenizer_2: CLIPTokenizer,
        scheduler: DDPMScheduler,
        force_zeros_for_empty_prompt: bool = True,
        resolution: int | None = None,
        option: str = "model.teacher",
    ) -> None:
        """Combine the parts, check that they fit, and freeze them.

        Args:
            unet: The denoiser.
            vae: The autoencoder.
            text_encoder: The first text encoder, CLIP ViT-L/14.
            text_encoder_2: The second text encoder, CLIP ViT-bigG/14, with its projection.
            tokenizer: The first text encoder's tokenizer.
            tokenizer_2: The second text encoder's tokenizer, which pads with "!".
            scheduler: Gives the betas and the prediction type.
            force_zeros_for_empty_prompt: Whether the null conditioning is zeros, as in
                `StableDiffusionXLPipeline`; else it is that of the empty prompt.
            resolution: Pixels per side of an image; by default the UNet's.
            option: The option that named the model, for messages.

        Raises:
            UsageError: If the parts are not SDXL's, or cannot take the resolution.
        """
        features = {
            "text_encoder": text_encoder.config.hidden_size,
            "text_encoder_2": text_encoder_2.config.hidden_size,
        }
        problem = _problem(unet.config, text_encoder_2.config.projection_dim)
        wanted = f"a text-to-image model of SDXL, such as {BASE}"
        check_parts(unet, vae, features, scheduler, option, problem, wanted)
        super().__init__(unet, vae, scheduler, resolution, option)
        self.text_encoder, self.text_encoder_2 = text_encoder, text_encoder_2
        self._tokenizers = {"tokenizer": tokenizer, "tokenizer_2": tokenizer_2}
        self.null_kind = "zeros" if force_zeros_for_empty_prompt else "empty"
        height, width = self.image_size
        # Original size, crop from the top left, target size.
        sizes = torch.tensor([[height, width, 0, 0, height, width]], dtype=torch.float32)
        self.register_buffer("time_ids", sizes, persistent=False)
        self.freeze()

    @classmethod
    def settings(cls, index: Mapping[str, Any]) -> dict[str, Any]:
        """Return force_zeros_for_empty_prompt, which diffusers sets by default."""
        name = "force_zeros_for_empty_prompt"
        return {name: bool(index.get(name, True))}

    # ------------------------------------------------------------------ text

    @property
    def tokenizers(self) -> dict[str, Any]:
        """Return both CLIP tokenizers."""
        return self._tokenizers

    @property
    def tokenize(self) -> Tokenize:
        """Return a function from prompts to `input_ids` and `input_ids_2`, [B, L]."""
        return partial(_tokenize, *self._tokenizers.values())

    def encode(self, tokens: Tokens) -> Conditioning:
        """Encode tokens.

        Returns:
            `encoder_hidden_states` [B, L, D], both encoders' last but one hidden states along D;
            `text_embeds` [B, P], the second encoder's projected features; `time_ids` [B, 6], the
            sizes (height, width, 0, 0, height, width).
        """
        first, _ = penultimate(self.text_encoder, tokens["input_ids"])
        second, pooled = penultimate(self.text_encoder_2, tokens["input_ids_2"])
        return {
            "encoder_hidden_states": torch.cat((first, second), dim=-1),
            "text_embeds": pooled,
            "time_ids": self.time_ids.to(pooled.device).expand(len(pooled), -1),
        }

    def encode_null(self) -> Conditioning:
        """Return zeros as features of text, or the empty prompt's; the sizes are every prompt's."""
        found = self.encode_prompts([""])
        if self.null_kind == "zeros":
            found |= {name: torch.zeros_like(found[name]) for name in _TEXT}
        return found

    def cut_off(self, prompt: str) -> str:
        """Return the end of a prompt that exceeds a tokenizer's length; "" if none does."""
        return max((cut_off(own, prompt) for own in self._tokenizers.values()), key=len)

    # ------------------------------------------------------------------ networks

    def arguments(self, condition: Conditioning, dtype: torch.dtype) -> dict[str, Any]:
        """Return the features of text in the dtype, and the sizes in float32."""
        states, pooled = (condition[name].to(dtype) for name in _TEXT)
        added = {"text_embeds": pooled, "time_ids": condition["time_ids"]}
        return {"encoder_hidden_states": states, "added_cond_kwargs": added}

    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents as `AssembledTeacher.decode`.

        As in the pipeline, a float16 autoencoder whose config has `force_upcast` becomes float32,
        since its activations overflow float16.
        """
        if self.vae.dtype == torch.float16 and self.vae.config.force_upcast:
            self.vae.float()
        return super().decode(latents)

    # ------------------------------------------------------------------ diffusers

    def embeddings(self, condition: Conditioning) -> dict[str, Tensor]:
        """Return `prompt_embeds` and `pooled_prompt_embeds`."""
        names = "prompt_embeds", "pooled_prompt_embeds"
        return {name: condition[own] for name, own in zip(names, _TEXT, strict=True)}

    def reference_scheduler(self) -> EulerDiscreteScheduler:
        """Return an Euler scheduler, the one of SDXL's base model."""
        return EulerDiscreteScheduler.from_config(self.scheduler_config)

    def other_parts(self) -> dict[str, Any]:
        """Return the text encoders, the null conditioning, and no watermark."""
        return {
            "text_encoder": self.text_encoder,
            "text_encoder_2": self.text_encoder_2,
            "force_zeros_for_empty_prompt": self.null_kind == "zeros",
            "add_watermarker": False,  # of the images; by default if a package for it is installed
        }


def _tokenize(first: CLIPTokenizer, second: CLIPTokenizer, prompts: Sequence[str]) -> Tokens:
    return tokenize(first, prompts) | {"input_ids_2": tokenize(second, prompts)["input_ids"]}


def _problem(config: Any, pooled: int) -> str | None:
    """Return what makes a UNet another one than SDXL's; None if nothing does."""
    if config.addition_embed_type != "text_time" or config.class_embed_type:
        return (
            f"its UNet has addition_embed_type {config.addition_embed_type!r} and class_embed_type "
            f"{config.class_embed_type!r}, not 'text_time' and None"
        )
    sizes = config.projection_class_embeddings_input_dim - pooled
    if sizes % config.addition_time_embed_dim:
        return (
            f"its UNet takes {sizes} features beside a prompt's, which is no multiple of "
            f"addition_time_embed_dim {config.addition_time_embed_dim}"
        )
    found = sizes // config.addition_time_embed_dim
    if sizes != _SIZES * config.addition_time_embed_dim:
        refiner = " (a refiner?)" if found == _SIZES - 1 else ""
        return f"its UNet takes {found} numbers with a prompt's features, not {_SIZES}{refiner}"
    return None
