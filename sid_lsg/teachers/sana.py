"""SANA as a teacher: linear DiT, deep compression autoencoder, Gemma 2 with an instruction."""

import inspect
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from diffusers import (
    AutoencoderDC,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    SanaPipeline,
    SanaTransformer2DModel,
)
from torch import Tensor
from transformers import Gemma2Model, GemmaTokenizerFast, PreTrainedTokenizerBase

from sid_lsg.messages.checks import beside
from sid_lsg.messages.errors import UsageError
from sid_lsg.method.conditioning import Conditioning
from sid_lsg.method.flow import TIMESTEPS, FlowSchedule
from sid_lsg.teachers.base import Tokenize, Tokens
from sid_lsg.teachers.checks import Fields, names, refuse_problem
from sid_lsg.teachers.fields import DC_VAE, GEMMA_TEXT
from sid_lsg.teachers.flow import FlowTeacher, latent_side
from sid_lsg.teachers.sana_architectures import ARCHITECTURES, INSTRUCTION_KEY
from sid_lsg.teachers.text import MASKED, on_device_of, tokenize_masked
from sid_lsg.teachers.untrained import Architecture

BASE = "Efficient-Large-Model/Sana_1600M_1024px_diffusers"
_STOCK = {
    name: parameter.default
    for name, parameter in inspect.signature(SanaPipeline.__call__).parameters.items()
}
LENGTH: int = _STOCK["max_sequence_length"]
"""The number of tokens that the transformer attends to."""

_AT_ONCE = 16  # prompts; the soft-cap's attention stores all scores


class Sana(FlowTeacher):
    """A model in SANA's layout: linear DiT, deep compression autoencoder, Gemma 2.

    The teachers of SANA-Sprint have this layout too; their configuration scales the time to t.
    The lines of the "complex human instruction" are the pipeline's default, unless the tokenizer's
    configuration has others; an empty list there means none.
    """

    family = "SANA"
    example = BASE
    pipeline_class = SanaPipeline
    parts: ClassVar[Mapping[str, type]] = {
        "transformer": SanaTransformer2DModel,
        "vae": AutoencoderDC,
        "text_encoder": Gemma2Model,
        "tokenizer": GemmaTokenizerFast,
        # Also holds the configuration of the usual DPM-Solver++, see `reference_scheduler`.
        "scheduler": FlowMatchEulerDiscreteScheduler,
    }
    vae_scale = 0.41407
    fields: ClassVar[Mapping[str, Fields]] = {
        "transformer": Fields(
            names(
                "sample_size patch_size in_channels out_channels num_layers num_attention_heads "
                "attention_head_dim num_cross_attention_heads cross_attention_head_dim "
                "cross_attention_dim caption_channels mlp_ratio dropout attention_bias qk_norm "
                "norm_elementwise_affine norm_eps interpolation_scale guidance_embeds "
                "guidance_embeds_scale"
            ),
            positive=names("timestep_scale"),
        ),
        "vae": DC_VAE,
        "text_encoder": GEMMA_TEXT,
    }
    architectures: ClassVar[Mapping[str, Architecture]] = ARCHITECTURES
    network: SanaTransformer2DModel

    def __init__(
        self,
        transformer: SanaTransformer2DModel,
        vae: AutoencoderDC,
        text_encoder: Gemma2Model,
        tokenizer: PreTrainedTokenizerBase,
        scheduler: FlowMatchEulerDiscreteScheduler,
        resolution: int | None = None,
        option: str = "model.teacher",
    ) -> None:
        """Combine the parts, check that they fit, and freeze them.

        Args:
            transformer: The denoiser.
            vae: The autoencoder.
            text_encoder: Gemma 2.
            tokenizer: Gemma 2's tokenizer.
            scheduler: Gives the solver and the shift for sampling the teacher.
            resolution: Pixels per side of an image; by default the transformer's.
            option: The option that named the model, for messages.

        Raises:
            UsageError: If the parts are not SANA's, or cannot take the resolution.
        """
        super().__init__()
        problem = _problem(transformer.config, vae, text_encoder)
        refuse_problem(problem, option, self.family, self.example)
        # Other implementations of attention skip the soft-cap that Gemma 2 was trained with.
        text_encoder.set_attn_implementation("eager")
        self.network = transformer
        self.vae = vae
        self.text_encoder = text_encoder
        self.tokenizer = tokenizer
        self.scheduler_config = dict(scheduler.config)
        # 1000 t; the configuration of SANA-Sprint's teachers makes it t.
        self.schedule = FlowSchedule(time_factor=TIMESTEPS * transformer.config.timestep_scale)
        config, factor = transformer.config, vae.spatial_compression_ratio
        place = beside(option, "resolution")
        side = latent_side(config.sample_size, factor, resolution, config.patch_size, None, place)
        if config.interpolation_scale is not None and side != config.sample_size:
            raise UsageError(
                f"--{place}: this teacher's position embedding is for "
                f"{config.sample_size * factor} pixels, not {side * factor}. Leave the option out."
            )
        self.latent_shape = (config.in_channels, side, side)
        self.image_size = (side * factor, side * factor)
        # The pipeline's default size is 1024, whatever the transformer's.
        self.pipeline_options = {"guidance_scale": 1, **self._size_options()}
        if self.instruction != _STOCK[INSTRUCTION_KEY]:
            self.pipeline_options[INSTRUCTION_KEY] = self.instruction
        if resolution is not None:
            # So that exported generators are loaded at this resolution by default.
            transformer.register_to_config(sample_size=side)
        self.freeze()

    # ------------------------------------------------------------------ text

    @property
    def instruction(self) -> list[str]:
        """Return the lines in front of a prompt."""
        found = self.tokenizer.init_kwargs.get(INSTRUCTION_KEY, _STOCK[INSTRUCTION_KEY])
        return list(found or [])

    @property
    def tokenize(self) -> Tokenize:
        """Return a function from prompts to `input_ids` and `attention_mask`."""
        return partial(_tokenize, self.tokenizer, "\n".join(self.instruction))

    @torch.no_grad()
    def encode(self, tokens: Tokens) -> Conditioning:
        """Encode tokens.

        Returns:
            `encoder_hidden_states` [B, 300, D]: Gemma 2's last hidden states of the first token and
            the last 299, and `encoder_attention_mask` [B, 300] int64, 0 for padding.
        """
        ids, mask = (on_device_of(self.text_encoder, tokens[name]) for name in MASKED)
        hidden = [
            _first_and_last(self.text_encoder(own, attention_mask=seen, use_cache=False)[0])
            for own, seen in zip(ids.split(_AT_ONCE), mask.split(_AT_ONCE), strict=True)
        ]
        return {
            "encoder_hidden_states": torch.cat(hidden),
            "encoder_attention_mask": _first_and_last(mask),
        }

    def cut_off(self, prompt: str) -> str:
        """Return the end of a prompt that the encoder does not read; "" if there is none."""
        (text,), length = _texts([prompt], "\n".join(self.instruction), self.tokenizer)
        tokens = self.tokenizer(text, return_offsets_mapping=True, verbose=False)
        if len(tokens.input_ids) <= length:
            return ""
        return text[tokens.offset_mapping[length][0] :].strip()

    # ------------------------------------------------------------------ networks

    def arguments(self, condition: Conditioning, dtype: torch.dtype) -> dict[str, Any]:
        """Return the features of text in the dtype, and their mask."""
        return condition | {"encoder_hidden_states": condition["encoder_hidden_states"].to(dtype)}

    # ------------------------------------------------------------------ diffusers

    def embeddings(self, condition: Conditioning) -> dict[str, Tensor]:
        """Return `prompt_embeds` and `prompt_attention_mask`."""
        return {
            "prompt_embeds": condition["encoder_hidden_states"],
            "prompt_attention_mask": condition["encoder_attention_mask"],
        }

    def reference_scheduler(self) -> Any:
        """Return the model's own scheduler: DPM-Solver++ or Euler, with its shift."""
        flow = self.scheduler_config.get("use_flow_sigmas", False)
        kind = DPMSolverMultistepScheduler if flow else FlowMatchEulerDiscreteScheduler
        return kind.from_config(self.scheduler_config)

    def reference_options(self) -> dict[str, Any]:
        """Return the exact size, and no negative prompt besides its embeddings."""
        return {"negative_prompt": None, **self._size_options()}

    def _size_options(self) -> dict[str, Any]:
        """Return the exact size; by default the pipeline resizes to one from a table."""
        return {**super().reference_options(), "use_resolution_binning": False}


def _texts(
    prompts: Sequence[str], instruction: str, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[str], int]:
    """Return what the encoder reads of prompts, as the pipeline does, and its most tokens.

    An empty prompt gets no instruction and so is the null prompt (SiD-DiT).
    """
    texts = [prompt.lower().strip() for prompt in prompts]
    if not instruction:
        return texts, LENGTH
    length = LENGTH + len(tokenizer.encode(instruction)) - 2
    return [text and instruction + text for text in texts], length


def _tokenize(
    tokenizer: PreTrainedTokenizerBase, instruction: str, prompts: Sequence[str]
) -> Tokens:
    texts, length = _texts(prompts, instruction, tokenizer)
    return tokenize_masked(tokenizer, texts, length)


def _first_and_last(values: Tensor) -> Tensor:
    """Return the first and the last 299 of more than 300 tokens (SANA, section 3.1)."""
    return torch.cat((values[:, :1], values[:, 1 - LENGTH :]), dim=1)


def _problem(config: Any, vae: AutoencoderDC, text_encoder: Gemma2Model) -> str | None:
    """Describe the first parts that load but do not form a model of SANA."""
    features, latents = text_encoder.config.hidden_size, vae.config.latent_channels
    if config.guidance_embeds:
        return "its transformer takes guidance as an input: it is already distilled (Sprint?)"
    if config.in_channels != latents:
        return (
            f"its transformer takes {config.in_channels} channels and its VAE's latents have "
            f"{latents}"
        )
    if config.out_channels not in (None, config.in_channels):
        return (
            f"its transformer takes {config.in_channels} channels and returns "
            f"{config.out_channels} (a model with a learned variance?)"
        )
    if config.caption_channels != features:
        return (
            f"its transformer attends to {config.caption_channels} features and its text_encoder "
            f"outputs {features}"
        )
    return None
