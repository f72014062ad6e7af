"""Stable Diffusion 1 and 2 as teachers: UNet, KL autoencoder, one CLIP text encoder."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from sid_lsg.method.conditioning import Conditioning
from sid_lsg.teachers.base import Tokenize, Tokens
from sid_lsg.teachers.checks import Fields
from sid_lsg.teachers.fields import CLIP_TEXT, KL_VAE, UNET
from sid_lsg.teachers.stable_diffusion_architectures import ARCHITECTURES
from sid_lsg.teachers.text import PromptEncoder, cut_off, tokenize
from sid_lsg.teachers.unet import UNetTeacher
from sid_lsg.teachers.unet_parts import check_parts
from sid_lsg.teachers.untrained import Architecture

_FOREIGN = {"scaling_factor": {0.13025: "Stable Diffusion XL's"}}  # of an autoencoder


class StableDiffusion(UNetTeacher):
    """A model in Stable Diffusion's layout: UNet, KL autoencoder, one CLIP text encoder."""

    family = "Stable Diffusion"
    pipeline_class = StableDiffusionPipeline
    parts: ClassVar[Mapping[str, type]] = {
        "unet": UNet2DConditionModel,
        "vae": AutoencoderKL,
        "text_encoder": CLIPTextModel,
        "tokenizer": CLIPTokenizer,
        "scheduler": DDPMScheduler,
    }
    vae_scale = 0.18215
    fields: ClassVar[Mapping[str, Fields]] = {
        "unet": UNET,
        "vae": replace(KL_VAE, foreign=_FOREIGN),
        "text_encoder": CLIP_TEXT,
    }
    architectures: ClassVar[Mapping[str, Architecture]] = ARCHITECTURES

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
        wanted = "a text-to-image model of Stable Diffusion 1 or 2"
        features = {"text_encoder": text_encoder.config.hidden_size}
        check_parts(unet, vae, features, scheduler, option, None, wanted)
        super().__init__(unet, vae, scheduler, resolution, option)
        second = unet.config.use_linear_projection
        self.original_layout = "stable-diffusion-2" if second else "stable-diffusion-1"
        self.text = PromptEncoder(tokenizer, text_encoder)
        self.freeze()

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

    def arguments(self, condition: Conditioning, dtype: torch.dtype) -> dict[str, Any]:
        """Return `encoder_hidden_states` in the dtype."""
        return {name: value.to(dtype) for name, value in condition.items()}

    def embeddings(self, condition: Conditioning) -> dict[str, Tensor]:
        """Return `prompt_embeds`."""
        return {"prompt_embeds": condition["encoder_hidden_states"]}

    def reference_scheduler(self) -> DDIMScheduler:
        """Return a DDIM scheduler."""
        return DDIMScheduler.from_config(self.scheduler_config, clip_sample=False)

    def other_parts(self) -> dict[str, Any]:
        """Return the text encoder, and no safety checker."""
        return {
            "text_encoder": self.text.text_encoder,
            "safety_checker": None,
            "feature_extractor": None,
            "requires_safety_checker": False,
        }
