"""Stable Diffusion 3 and 3.5 as teachers: MMDiT, KL autoencoder, two CLIP encoders and T5."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from torch import Tensor
from transformers import (
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    PreTrainedTokenizerBase,
    T5EncoderModel,
    T5TokenizerFast,
)

from sid_lsg.messages.checks import beside
from sid_lsg.messages.errors import UsageError
from sid_lsg.method.conditioning import Conditioning
from sid_lsg.method.flow import FlowSchedule
from sid_lsg.teachers.autoencoder import vae_factor
from sid_lsg.teachers.base import Tokenize, Tokens
from sid_lsg.teachers.checks import Fields, names
from sid_lsg.teachers.fields import CLIP_TEXT, KL_VAE, T5_TEXT
from sid_lsg.teachers.flow import FlowTeacher, latent_side
from sid_lsg.teachers.lengths import ChosenLength
from sid_lsg.teachers.sd3_architectures import ARCHITECTURES
from sid_lsg.teachers.text import cut_off, on_device_of, penultimate, tokenize
from sid_lsg.teachers.untrained import Architecture

BASE = "stabilityai/stable-diffusion-3.5-medium"


class SD3(ChosenLength, FlowTeacher):
    """A model in the layout of Stable Diffusion 3: MMDiT, KL autoencoder, CLIP-L, CLIP-G, T5.

    T5 may be missing, as in the pipeline; its features are then zeros. T5 reads
    `max_sequence_length` tokens: 256 as in the pipeline, unless the first tokenizer's configuration
    has another number. SiD-DiT's code uses 77.
    """

    family = "Stable Diffusion 3"
    original_layout = "sd3"
    example = BASE
    pipeline_class = StableDiffusion3Pipeline
    parts: ClassVar[Mapping[str, type]] = {
        "transformer": SD3Transformer2DModel,
        "vae": AutoencoderKL,
        "text_encoder": CLIPTextModelWithProjection,
        "text_encoder_2": CLIPTextModelWithProjection,
        "text_encoder_3": T5EncoderModel,
        "tokenizer": CLIPTokenizer,
        "tokenizer_2": CLIPTokenizer,
        "tokenizer_3": T5TokenizerFast,
        "scheduler": FlowMatchEulerDiscreteScheduler,
    }
    optional = ("text_encoder_3", "tokenizer_3")
    hands_generator_on = False
    usual_length = 256
    least_length = 0
    vae_scale = 1.5305
    fields: ClassVar[Mapping[str, Fields]] = {
        "transformer": Fields(
            names(
                "sample_size patch_size in_channels num_layers attention_head_dim "
                "num_attention_heads joint_attention_dim caption_projection_dim "
                "pooled_projection_dim out_channels pos_embed_max_size dual_attention_layers "
                "qk_norm"
            )
        ),
        "vae": KL_VAE.but(shift_factor=(...,)),
        "text_encoder": CLIP_TEXT,
        "text_encoder_2": CLIP_TEXT,
        "text_encoder_3": T5_TEXT,
    }
    architectures: ClassVar[Mapping[str, Architecture]] = ARCHITECTURES
    network: SD3Transformer2DModel

    def __init__(
        self,
        transformer: SD3Transformer2DModel,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModelWithProjection,
        text_encoder_2: CLIPTextModelWithProjection,
        tokenizer: CLIPTokenizer,
        tokenizer_2: CLIPTokenizer,
        scheduler: FlowMatchEulerDiscreteScheduler,
        text_encoder_3: T5EncoderModel | None = None,
        tokenizer_3: PreTrainedTokenizerBase | None = None,
        resolution: int | None = None,
        option: str = "model.teacher",
    ) -> None:
        """Combine the parts, check that they fit, and freeze them.

        Args:
            transformer: The denoiser.
            vae: The autoencoder.
            text_encoder: The first text encoder, CLIP ViT-L/14, with its projection.
            text_encoder_2: The second text encoder, CLIP ViT-bigG/14, with its projection.
            tokenizer: The first text encoder's tokenizer.
            tokenizer_2: The second text encoder's tokenizer, which pads with "!".
            scheduler: Gives the shift for sampling the teacher.
            text_encoder_3: The third text encoder, T5-XXL, if there is one.
            tokenizer_3: The third text encoder's tokenizer.
            resolution: Pixels per side of an image; by default the transformer's.
            option: The option that named the model, for messages.

        Raises:
            UsageError: If the parts are not Stable Diffusion 3's, or cannot take the resolution.
        """
        super().__init__()
        encoders = [text_encoder, text_encoder_2]
        _check(transformer.config, vae, encoders, text_encoder_3, option)
        self.network = transformer
        self.vae = vae
        self.text_encoder, self.text_encoder_2 = encoders
        self.text_encoder_3 = text_encoder_3
        if text_encoder_3 is None:
            self.missing_parts = self.optional
        found = {"tokenizer": tokenizer, "tokenizer_2": tokenizer_2, "tokenizer_3": tokenizer_3}
        self._tokenizers = {name: own for name, own in found.items() if own is not None}
        self.scheduler_config = dict(scheduler.config)
        self.schedule = FlowSchedule()
        config, factor = transformer.config, vae_factor(vae)
        patch = config.patch_size
        side = latent_side(
            config.sample_size,
            factor,
            resolution,
            patch,
            config.pos_embed_max_size and config.pos_embed_max_size * patch,
            beside(option, "resolution"),
        )
        self.latent_shape = (config.in_channels, side, side)
        self.image_size = (side * factor, side * factor)
        if resolution is not None:
            # So that exported generators sample at this resolution by default.
            transformer.register_to_config(sample_size=side)
        self.freeze()

    # ------------------------------------------------------------------ text

    @property
    def tokenizers(self) -> dict[str, Any]:
        """Return the tokenizers: two of CLIP, and T5's if there is one."""
        return self._tokenizers

    @property
    def tokenize(self) -> Tokenize:
        """Return a function from prompts to `input_ids`, `input_ids_2` and T5's `input_ids_3`."""
        return partial(_tokenize, dict(self._tokenizers), self.max_sequence_length)

    def encode(self, tokens: Tokens) -> Conditioning:
        """Encode tokens.

        Returns:
            `encoder_hidden_states` [B, 77 + L, D]: both CLIP encoders' last but one hidden states
            along D, padded with zeros, then T5's L last hidden states, or zeros without T5.
            `pooled_projections` [B, P]: both CLIP encoders' projected features.
        """
        first, pooled = penultimate(self.text_encoder, tokens["input_ids"])
        second, pooled_2 = penultimate(self.text_encoder_2, tokens["input_ids_2"])
        clip = torch.cat((first, second), dim=-1)
        clip = F.pad(clip, (0, self.network.config.joint_attention_dim - clip.shape[-1]))
        return {
            "encoder_hidden_states": torch.cat((clip, self._encode_t5(tokens, clip)), dim=1),
            "pooled_projections": torch.cat((pooled, pooled_2), dim=-1),
        }

    @torch.no_grad()
    def _encode_t5(self, tokens: Tokens, like: Tensor) -> Tensor:
        """Encode T5's tokens [B, L]: [B, L, D]; zeros without T5."""
        if self.text_encoder_3 is None or not self.max_sequence_length:
            return like.new_zeros(len(like), self.max_sequence_length, like.shape[-1])
        input_ids = on_device_of(self.text_encoder_3, tokens["input_ids_3"])
        return self.text_encoder_3(input_ids)[0].to(like)

    def cut_off(self, prompt: str) -> str:
        """Return the end of a prompt that no encoder reads; "" if there is none."""
        names = ["tokenizer", "tokenizer_2"]
        ends = [cut_off(self._tokenizers[name], prompt) for name in names]
        if (t5 := self._tokenizers.get("tokenizer_3")) is not None and self.max_sequence_length:
            ends.append(cut_off(t5, prompt, self.max_sequence_length))
        return min(ends, key=len)

    # ------------------------------------------------------------------ networks

    def arguments(self, condition: Conditioning, dtype: torch.dtype) -> dict[str, Any]:
        """Return the features of text in the dtype."""
        return {name: value.to(dtype) for name, value in condition.items()}

    # ------------------------------------------------------------------ diffusers

    def embeddings(self, condition: Conditioning) -> dict[str, Tensor]:
        """Return `prompt_embeds` and `pooled_prompt_embeds`."""
        return {
            "prompt_embeds": condition["encoder_hidden_states"],
            "pooled_prompt_embeds": condition["pooled_projections"],
        }

    def other_parts(self) -> dict[str, Any]:
        """Return the text encoders; T5 and its tokenizer may be None."""
        return {
            "text_encoder": self.text_encoder,
            "text_encoder_2": self.text_encoder_2,
            "text_encoder_3": self.text_encoder_3,
            "tokenizer_3": self._tokenizers.get("tokenizer_3"),
        }


def _tokenize(tokenizers: Mapping[str, Any], length: int, prompts: Sequence[str]) -> Tokens:
    tokens = tokenize(tokenizers["tokenizer"], prompts)
    tokens["input_ids_2"] = tokenize(tokenizers["tokenizer_2"], prompts)["input_ids"]
    if length and "tokenizer_3" in tokenizers:
        tokens["input_ids_3"] = tokenize(tokenizers["tokenizer_3"], prompts, length)["input_ids"]
    return tokens


def _check(
    config: Any,
    vae: AutoencoderKL,
    clips: Sequence[CLIPTextModelWithProjection],
    t5: T5EncoderModel | None,
    option: str,
) -> None:
    """Reject parts that load but do not form a model of Stable Diffusion 3.

    Raises:
        UsageError: If the parts do not fit together.
    """
    features = sum(clip.config.hidden_size for clip in clips)
    pooled = sum(clip.config.projection_dim for clip in clips)
    width, problem = config.joint_attention_dim, None
    if config.in_channels != vae.config.latent_channels:
        problem = (
            f"its transformer takes {config.in_channels} channels and its VAE's latents have "
            f"{vae.config.latent_channels} (an inpainting model?)"
        )
    elif config.out_channels != config.in_channels:
        problem = (
            f"its transformer takes {config.in_channels} channels and returns "
            f"{config.out_channels} (in_channels and out_channels)"
        )
    elif features > width or (t5 is not None and t5.config.d_model != width):
        third = "" if t5 is None else f", and text_encoder_3 {t5.config.d_model}"
        problem = (
            f"its transformer attends to {width} features, its text_encoder and text_encoder_2 "
            f"output {features} together{third}"
        )
    elif config.pooled_projection_dim != pooled:
        problem = (
            f"its transformer takes {config.pooled_projection_dim} pooled features and its text "
            f"encoders output {pooled}"
        )
    if problem:
        wanted = f"a text-to-image model of Stable Diffusion 3, such as {BASE}"
        raise UsageError(f"--{option}: {problem}. Give {wanted}.")
