"""FLUX.1-dev as a teacher: MMDiT with a guidance embedding, KL autoencoder, CLIP and T5."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
)
from torch import Tensor
from transformers import (
    CLIPTextModel,
    CLIPTokenizer,
    PreTrainedTokenizerBase,
    T5EncoderModel,
    T5TokenizerFast,
)

from sid_lsg.messages.checks import beside
from sid_lsg.method.conditioning import Conditioning
from sid_lsg.method.flow import FlowSchedule
from sid_lsg.method.guidance import EMBEDDED
from sid_lsg.teachers.autoencoder import vae_factor
from sid_lsg.teachers.base import Tokenize, Tokens
from sid_lsg.teachers.checks import Fields, names, refuse_problem
from sid_lsg.teachers.fields import CLIP_TEXT, KL_VAE, T5_TEXT
from sid_lsg.teachers.flux_architectures import ARCHITECTURES
from sid_lsg.teachers.lengths import ChosenLength
from sid_lsg.teachers.packing import PATCH, axes_problem, grid
from sid_lsg.teachers.text import cut_off, on_device_of, tokenize
from sid_lsg.teachers.unsized import PackedTeacher
from sid_lsg.teachers.untrained import Architecture

_TEXT = ("encoder_hidden_states", "pooled_projections")


class Flux(ChosenLength, PackedTeacher):
    """A model in the layout of FLUX.1-dev: MMDiT, KL autoencoder, CLIP-L, T5.

    The network takes a guidance scale as an input, unless it was trained without. Generators get 1.
    """

    family = "FLUX.1"
    original_layout = "flux"
    example = "black-forest-labs/FLUX.1-dev"
    pipeline_class = FluxPipeline
    parts: ClassVar[Mapping[str, type]] = {
        "transformer": FluxTransformer2DModel,
        "vae": AutoencoderKL,
        "text_encoder": CLIPTextModel,
        "text_encoder_2": T5EncoderModel,
        "tokenizer": CLIPTokenizer,
        "tokenizer_2": T5TokenizerFast,
        "scheduler": FlowMatchEulerDiscreteScheduler,
    }
    vae_scale = 0.3611
    fields: ClassVar[Mapping[str, Fields]] = {
        "transformer": Fields(
            names(
                "in_channels num_layers num_single_layers attention_head_dim num_attention_heads "
                "joint_attention_dim pooled_projection_dim guidance_embeds axes_dims_rope "
                "out_channels"
            ),
            {"patch_size": (1,)},
        ),
        "vae": KL_VAE.but(shift_factor=(...,)),
        "text_encoder": CLIP_TEXT,
        "text_encoder_2": T5_TEXT,
    }
    architectures: ClassVar[Mapping[str, Architecture]] = ARCHITECTURES
    usual_length = 512
    embedding_scale = 1000
    network: FluxTransformer2DModel

    def __init__(
        self,
        transformer: FluxTransformer2DModel,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        text_encoder_2: T5EncoderModel,
        tokenizer: CLIPTokenizer,
        tokenizer_2: PreTrainedTokenizerBase,
        scheduler: FlowMatchEulerDiscreteScheduler,
        resolution: int | None = None,
        option: str = "model.teacher",
    ) -> None:
        """Combine the parts, check that they fit, and freeze them.

        Args:
            transformer: The denoiser.
            vae: The autoencoder.
            text_encoder: CLIP ViT-L/14, for the pooled features.
            text_encoder_2: T5-XXL, for the features per token.
            tokenizer: CLIP's tokenizer.
            tokenizer_2: T5's tokenizer.
            scheduler: Gives the shift for sampling the teacher.
            resolution: Pixels per side of an image; by default the autoencoder's.
            option: The option that named the model, for messages.

        Raises:
            UsageError: If the parts are not FLUX.1's, or cannot take the resolution.
        """
        super().__init__()
        problem = _problem(transformer.config, vae, text_encoder, text_encoder_2)
        refuse_problem(problem, option, self.family, self.example)
        self.network = transformer
        self.vae = vae
        self.text_encoder, self.text_encoder_2 = text_encoder, text_encoder_2
        self._tokenizers = {"tokenizer": tokenizer, "tokenizer_2": tokenizer_2}
        self.scheduler_config = dict(scheduler.config)
        self.schedule = FlowSchedule(time_factor=1)  # the network multiplies it by 1000
        self.embeds_guidance = bool(transformer.config.guidance_embeds)
        channels, place = vae.config.latent_channels, beside(option, "resolution")
        self.set_size(channels, vae_factor(vae), PATCH, resolution, place)
        self.freeze()

    # ------------------------------------------------------------------ text

    @property
    def tokenizers(self) -> dict[str, Any]:
        """Return the tokenizers, CLIP's and T5's."""
        return self._tokenizers

    @property
    def tokenize(self) -> Tokenize:
        """Return a function from prompts to CLIP's `input_ids` and T5's `input_ids_2`."""
        clip, t5 = self._tokenizers.values()
        return partial(_tokenize, clip, t5, self.max_sequence_length)

    @torch.no_grad()
    def encode(self, tokens: Tokens) -> Conditioning:
        """Encode tokens.

        Returns:
            `encoder_hidden_states` [B, L, D], T5's last hidden states without a mask;
            `pooled_projections` [B, P], CLIP's pooled features; and `guidance` [B], 1, if the
            network takes it.
        """
        pooled = self.text_encoder(
            on_device_of(self.text_encoder, tokens["input_ids"])
        ).pooler_output
        ids = on_device_of(self.text_encoder_2, tokens["input_ids_2"])
        found = {
            "encoder_hidden_states": self.text_encoder_2(ids)[0],
            "pooled_projections": pooled,
        }
        if self.embeds_guidance:
            found[EMBEDDED] = torch.ones(len(pooled), device=pooled.device)
        return found

    def cut_off(self, prompt: str) -> str:
        """Return the end of a prompt that neither encoder reads; "" if there is none."""
        clip, t5 = self._tokenizers.values()
        ends = cut_off(clip, prompt), cut_off(t5, prompt, self.max_sequence_length)
        return min(ends, key=len)

    # ------------------------------------------------------------------ networks

    def arguments(self, condition: Conditioning, dtype: torch.dtype) -> dict[str, Any]:
        """Return the features of text in the dtype; the guidance scale stays in float32."""
        text = {name: condition[name].to(dtype) for name in _TEXT}
        return text | {"guidance": condition.get(EMBEDDED)}

    def size_arguments(self, x_t: Tensor, condition: Conditioning) -> dict[str, Any]:
        """Return the positions of the text, which are 0, and of the image: its row and column."""
        height, width = (side // PATCH for side in x_t.shape[2:])
        tokens = condition["encoder_hidden_states"].shape[1]
        return {"txt_ids": x_t.new_zeros(tokens, 3), "img_ids": grid(height, width, x_t)}

    # ------------------------------------------------------------------ diffusers

    def embeddings(self, condition: Conditioning) -> dict[str, Tensor]:
        """Return `prompt_embeds` and `pooled_prompt_embeds`."""
        return {
            "prompt_embeds": condition["encoder_hidden_states"],
            "pooled_prompt_embeds": condition["pooled_projections"],
        }

    def reference_guidance(self, scale: float) -> dict[str, Any]:
        """Return the scale of the guidance embedding, as usual; without it, that of true CFG."""
        if self.embeds_guidance:  # it was trained with scales from 1
            return {"guidance_scale": max(scale, 1.0)}
        return {"true_cfg_scale": scale}

    def other_parts(self) -> dict[str, Any]:
        """Return the text encoders."""
        return {"text_encoder": self.text_encoder, "text_encoder_2": self.text_encoder_2}


def _tokenize(
    clip: CLIPTokenizer, t5: PreTrainedTokenizerBase, length: int, prompts: Sequence[str]
) -> Tokens:
    return tokenize(clip, prompts) | {"input_ids_2": tokenize(t5, prompts, length)["input_ids"]}


def _problem(
    config: Any, vae: AutoencoderKL, clip: CLIPTextModel, t5: T5EncoderModel
) -> str | None:
    """Describe the first parts that load but do not form a model of FLUX.1."""
    packed = vae.config.latent_channels * PATCH**2
    if config.in_channels != packed:
        return (
            f"its transformer takes {config.in_channels} channels and its VAE's latents have "
            f"{packed} in patches of {PATCH} x {PATCH} (an editing or inpainting model?)"
        )
    if config.out_channels not in (None, packed):
        return (
            f"its transformer takes {packed} channels and returns {config.out_channels} "
            "(in_channels and out_channels)"
        )
    if config.joint_attention_dim != t5.config.d_model:
        return (
            f"its transformer attends to {config.joint_attention_dim} features and its "
            f"text_encoder_2 outputs {t5.config.d_model}"
        )
    if config.pooled_projection_dim != clip.config.hidden_size:
        return (
            f"its transformer takes {config.pooled_projection_dim} pooled features and its "
            f"text_encoder outputs {clip.config.hidden_size}"
        )
    return axes_problem(config)
