"""PixArt-Alpha and PixArt-Sigma as teachers: DiT, KL autoencoder, T5 with its mask."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    PixArtAlphaPipeline,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
)
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, T5EncoderModel, T5TokenizerFast

from sid_lsg.messages.checks import beside
from sid_lsg.messages.errors import UsageError
from sid_lsg.method.conditioning import Conditioning
from sid_lsg.method.schedule import PREDICTION_TYPES
from sid_lsg.teachers.autoencoder import vae_factor
from sid_lsg.teachers.base import Tokenize, Tokens
from sid_lsg.teachers.checks import Fields, names, refuse_problem
from sid_lsg.teachers.diffusion import DiffusionTeacher
from sid_lsg.teachers.fields import KL_VAE, T5_TEXT
from sid_lsg.teachers.flow import latent_side
from sid_lsg.teachers.lengths import ChosenLength
from sid_lsg.teachers.pixart_architectures import ALPHA, SIGMA
from sid_lsg.teachers.text import MASKED, cut_off, on_device_of, tokenize_masked
from sid_lsg.teachers.untrained import Architecture

_UNCHANGED = {"use_resolution_binning": False, "clean_caption": False}
_CONDITIONED = 128  # the sample_size at which PixArt-Alpha's pipeline gives the size to the network


class PixArtSigma(ChosenLength, DiffusionTeacher):
    """A model in PixArt's layout: DiT, KL autoencoder, T5.

    The network predicts eps, and usually a variance, which the method does not use. Prompts are
    lower-cased and stripped, as the pipeline does.
    """

    family = "PixArt-Sigma"
    example = "PixArt-alpha/PixArt-Sigma-XL-2-1024-MS"
    pipeline_class: ClassVar[type] = PixArtSigmaPipeline
    parts: ClassVar[Mapping[str, type]] = {
        "transformer": PixArtTransformer2DModel,
        "vae": AutoencoderKL,
        "text_encoder": T5EncoderModel,
        "tokenizer": T5TokenizerFast,
        # Also holds the configuration of DPM-Solver++, see `reference_scheduler`.
        "scheduler": DDPMScheduler,
    }
    fields: ClassVar[Mapping[str, Fields]] = {
        "transformer": Fields(
            names(
                "num_attention_heads attention_head_dim in_channels out_channels num_layers "
                "dropout norm_num_groups cross_attention_dim attention_bias sample_size patch_size "
                "activation_fn num_embeds_ada_norm upcast_attention norm_type "
                "norm_elementwise_affine norm_eps interpolation_scale use_additional_conditions "
                "caption_channels"
            ),
            {"attention_type": ("default", None)},
        ),
        "vae": KL_VAE,
        "text_encoder": T5_TEXT,
    }
    architectures: ClassVar[Mapping[str, Architecture]] = SIGMA
    network_name = "transformer"
    vae_scale = 0.13025
    usual_length = 300
    least_length = 1
    takes_size: ClassVar[bool] = False
    network: PixArtTransformer2DModel

    def __init__(
        self,
        transformer: PixArtTransformer2DModel,
        vae: AutoencoderKL,
        text_encoder: T5EncoderModel,
        tokenizer: PreTrainedTokenizerBase,
        scheduler: DDPMScheduler,
        resolution: int | None = None,
        option: str = "model.teacher",
    ) -> None:
        """Combine the parts, check that they fit, and freeze them.

        Args:
            transformer: The denoiser.
            vae: The autoencoder.
            text_encoder: T5.
            tokenizer: T5's tokenizer.
            scheduler: Gives the betas, and the solver for sampling the teacher.
            resolution: Pixels per side of an image; by default the transformer's.
            option: The option that named the model, for messages.

        Raises:
            UsageError: If the parts are not PixArt's, or cannot take the resolution.
        """
        super().__init__()
        problem = _problem(transformer, vae, text_encoder, scheduler, self.takes_size)
        refuse_problem(problem, option, self.family, self.example)
        self.network = transformer
        self.vae = vae
        self.text_encoder = text_encoder
        self.tokenizer = tokenizer
        self.set_schedule(scheduler)
        config, factor = transformer.config, vae_factor(vae)
        place = beside(option, "resolution")
        size = config.sample_size
        side = latent_side(size, factor, resolution, config.patch_size, None, place)
        self.latent_shape = (config.in_channels, side, side)
        self.image_size = (side * factor, side * factor)
        if side != size:
            _resize(transformer, side, size * factor, place)
        self.pipeline_options = {"guidance_scale": 1, **_UNCHANGED}
        self.freeze()

    # ------------------------------------------------------------------ text

    @property
    def tokenize(self) -> Tokenize:
        """Return a function from prompts to `input_ids` and `attention_mask`, [B, L]."""
        return partial(_tokenize, self.tokenizer, self.max_sequence_length)

    @torch.no_grad()
    def encode(self, tokens: Tokens) -> Conditioning:
        """Encode tokens.

        Returns:
            `encoder_hidden_states` [B, L, D], T5's last hidden states, and
            `encoder_attention_mask` [B, L] int64, 0 for padding.
        """
        ids, mask = (on_device_of(self.text_encoder, tokens[name]) for name in MASKED)
        # transformers reads the values of a mask, which tensors on the meta device do not have.
        hidden = self.text_encoder(ids, attention_mask=None if mask.is_meta else mask)[0]
        return {"encoder_hidden_states": hidden, "encoder_attention_mask": mask}

    def cut_off(self, prompt: str) -> str:
        """Return the end of a prompt that exceeds the number of tokens; "" if nothing does."""
        return cut_off(self.tokenizer, _clean(prompt), self.max_sequence_length)

    # ------------------------------------------------------------------ networks

    def arguments(self, condition: Conditioning, dtype: torch.dtype) -> dict[str, Any]:
        """Return the features of text in the dtype, and their mask."""
        return condition | {"encoder_hidden_states": condition["encoder_hidden_states"].to(dtype)}

    def size_arguments(self, x_t: Tensor, condition: Conditioning) -> dict[str, Any]:
        """Return the image's size and aspect ratio, of which PixArt-Alpha at 1024 px is told."""
        if not self.network.use_additional_conditions:
            return {"added_cond_kwargs": {"resolution": None, "aspect_ratio": None}}
        height, width = (side * vae_factor(self.vae) for side in x_t.shape[2:])
        size = x_t.new_tensor([[height, width]]).expand(len(x_t), -1)
        aspect = x_t.new_tensor([[height / width]]).expand(len(x_t), -1)
        return {"added_cond_kwargs": {"resolution": size, "aspect_ratio": aspect}}

    def network_output(self, output: Tensor, x_t: Tensor) -> Tensor:
        """Return the prediction of eps, without that of the variance in the further channels."""
        return output[:, : x_t.shape[1]]

    def end_of_encoder(self, network: nn.Module) -> nn.Module:
        """Return the final norm, before the projection to patches."""
        norm: Any = network.norm_out
        return norm

    # ------------------------------------------------------------------ diffusers

    def embeddings(self, condition: Conditioning) -> dict[str, Tensor]:
        """Return `prompt_embeds` and `prompt_attention_mask`."""
        return {
            "prompt_embeds": condition["encoder_hidden_states"],
            "prompt_attention_mask": condition["encoder_attention_mask"],
        }

    def reference_scheduler(self) -> DPMSolverMultistepScheduler:
        """Return DPM-Solver++, the scheduler of PixArt's models."""
        return DPMSolverMultistepScheduler.from_config(self.scheduler_config)

    def reference_options(self) -> dict[str, Any]:
        """Return the exact size, and no negative prompt besides its embeddings."""
        return {"negative_prompt": None, **super().reference_options(), **_UNCHANGED}


class PixArtAlpha(PixArtSigma):
    """A model of PixArt-Alpha, whose network at 1024 px takes the image's size."""

    family = "PixArt-Alpha"
    example = "PixArt-alpha/PixArt-XL-2-1024-MS"
    pipeline_class = PixArtAlphaPipeline
    architectures: ClassVar[Mapping[str, Architecture]] = ALPHA
    vae_scale = 0.18215
    usual_length = 120
    takes_size = True


def _clean(prompt: str) -> str:
    return prompt.lower().strip()


def _tokenize(tokenizer: PreTrainedTokenizerBase, length: int, prompts: Sequence[str]) -> Tokens:
    return tokenize_masked(tokenizer, [_clean(prompt) for prompt in prompts], length)


def _resize(transformer: PixArtTransformer2DModel, side: int, pixels: int, option: str) -> None:
    """Set a transformer's usual size, so that exported generators sample at it by default.

    Its positions are patches * sample_size / side / interpolation_scale, so the scale changes too.

    Args:
        transformer: The transformer.
        side: Latent pixels per side.
        pixels: Pixels per side of the image at its own size, for the message.
        option: The option of the resolution, for the message.

    Raises:
        UsageError: If its pipeline gives it the image's size at its own size only.
    """
    if transformer.use_additional_conditions:
        raise UsageError(
            f"--{option}: this teacher's network takes the image's size, which its pipeline gives "
            f"at {pixels} pixels only. Leave the option out."
        )
    size, embed = transformer.config.sample_size, transformer.pos_embed
    transformer.register_to_config(
        sample_size=side,
        interpolation_scale=embed.interpolation_scale * side / size,
        use_additional_conditions=False,
    )


def _problem(
    transformer: PixArtTransformer2DModel,
    vae: AutoencoderKL,
    text_encoder: T5EncoderModel,
    scheduler: DDPMScheduler,
    takes_size: bool,
) -> str | None:
    """Describe the first parts that load but do not form a model of PixArt."""
    config, latents = transformer.config, vae.config.latent_channels
    features, prediction = text_encoder.config.d_model, scheduler.config.prediction_type
    if config.in_channels != latents:
        return (
            f"its transformer takes {config.in_channels} channels and its VAE's latents have "
            f"{latents}"
        )
    if transformer.out_channels not in (latents, 2 * latents):
        return (
            f"its transformer takes {config.in_channels} channels and returns "
            f"{config.out_channels}, neither as many nor twice as many"
        )
    if config.caption_channels != features:
        return (
            f"its transformer attends to {config.caption_channels} features and its text_encoder "
            f"outputs {features}"
        )
    given = takes_size and config.sample_size == _CONDITIONED
    if transformer.use_additional_conditions and not given:
        return (
            "its transformer takes the image's size (use_additional_conditions), which its "
            f"pipeline does not give for sample_size {config.sample_size}"
        )
    if prediction not in PREDICTION_TYPES:
        return (
            f"its scheduler's prediction_type is {prediction!r}, not one of "
            f"{', '.join(PREDICTION_TYPES)}"
        )
    return None
