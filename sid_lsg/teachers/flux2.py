"""FLUX.2-klein-base as a teacher: MMDiT, KL autoencoder with batch statistics, Qwen 3."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from diffusers import (
    AutoencoderKLFlux2,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
)
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, Qwen2TokenizerFast, Qwen3ForCausalLM

from sid_lsg.files.sources import locate
from sid_lsg.images.pixels import from_uint8
from sid_lsg.messages.checks import beside
from sid_lsg.method.conditioning import Conditioning
from sid_lsg.method.flow import FlowSchedule
from sid_lsg.teachers.autoencoder import vae_factor
from sid_lsg.teachers.base import Tokenize, Tokens
from sid_lsg.teachers.checks import Fields, names, refuse_problem
from sid_lsg.teachers.fields import QWEN_TEXT
from sid_lsg.teachers.flux2_architectures import ARCHITECTURES
from sid_lsg.teachers.layout import read_index
from sid_lsg.teachers.lengths import ChosenLength
from sid_lsg.teachers.packing import PATCH, axes_problem, grid
from sid_lsg.teachers.text import (
    MASKED,
    chat,
    chat_cut_off,
    on_device_of,
    readable,
    tokenize_masked,
)
from sid_lsg.teachers.unsized import UnsizedTeacher
from sid_lsg.teachers.untrained import Architecture

LAYERS = (9, 18, 27)
"""The hidden states of Qwen 3 that the transformer attends to, as in `Flux2KleinPipeline`."""


class Flux2(ChosenLength, UnsizedTeacher):
    """A model in the layout of FLUX.2-klein-base: MMDiT, KL autoencoder, Qwen 3.

    A latent is [4 C, H/16, W/16]: patches of 2 x 2 of the autoencoder's latents, normalised by the
    statistics of its batch norm. FLUX.2-dev, which has another text encoder, is refused.
    """

    family = "FLUX.2-klein"
    original_layout = "flux2"
    example = "black-forest-labs/FLUX.2-klein-base-4B"
    pipeline_class = Flux2KleinPipeline
    parts: ClassVar[Mapping[str, type]] = {
        "transformer": Flux2Transformer2DModel,
        "vae": AutoencoderKLFlux2,
        "text_encoder": Qwen3ForCausalLM,
        "tokenizer": Qwen2TokenizerFast,
        "scheduler": FlowMatchEulerDiscreteScheduler,
    }
    fields: ClassVar[Mapping[str, Fields]] = {
        "transformer": Fields(
            names(
                "in_channels out_channels num_layers num_single_layers attention_head_dim "
                "num_attention_heads joint_attention_dim timestep_guidance_channels mlp_ratio "
                "axes_dims_rope rope_theta eps guidance_embeds"
            ),
            {"patch_size": (1,)},
        ),
        "vae": Fields(
            names(
                "down_block_types up_block_types block_out_channels decoder_block_out_channels "
                "layers_per_block act_fn latent_channels norm_num_groups sample_size force_upcast "
                "use_quant_conv use_post_quant_conv mid_block_add_attention batch_norm_momentum"
            ),
            {"in_channels": (3,), "out_channels": (3,), "patch_size": ([2, 2], (2, 2))},
            names("batch_norm_eps"),
        ),
        "text_encoder": QWEN_TEXT,
    }
    architectures: ClassVar[Mapping[str, Architecture]] = ARCHITECTURES
    usual_length = 512
    network: Flux2Transformer2DModel

    def __init__(
        self,
        transformer: Flux2Transformer2DModel,
        vae: AutoencoderKLFlux2,
        text_encoder: Qwen3ForCausalLM,
        tokenizer: PreTrainedTokenizerBase,
        scheduler: FlowMatchEulerDiscreteScheduler,
        resolution: int | None = None,
        option: str = "model.teacher",
    ) -> None:
        """Combine the parts, check that they fit, and freeze them.

        Args:
            transformer: The denoiser.
            vae: The autoencoder.
            text_encoder: Qwen 3.
            tokenizer: Qwen 3's tokenizer, with its chat template.
            scheduler: Gives the shift for sampling the teacher.
            resolution: Pixels per side of an image; by default the autoencoder's.
            option: The option that named the model, for messages.

        Raises:
            UsageError: If the parts are not FLUX.2-klein's, or cannot take the resolution.
        """
        super().__init__()
        problem = _problem(transformer.config, vae, text_encoder.config)
        refuse_problem(problem, option, self.family, self.example)
        self.network = transformer
        self.vae = vae
        self.text_encoder = text_encoder
        self.tokenizer = tokenizer
        self.scheduler_config = dict(scheduler.config)
        self.schedule = FlowSchedule(time_factor=1)  # the network multiplies it by 1000
        channels, place = transformer.config.in_channels, beside(option, "resolution")
        self.set_size(channels, PATCH * vae_factor(vae), 1, resolution, place)
        self.freeze()

    @classmethod
    def check_configs(
        cls,
        model: str,
        where: Mapping[str, str] | None = None,
        revision: str | None = None,
        option: str = "model.teacher",
        index: Mapping[str, Any] | None = None,
    ) -> None:
        """Refuse FLUX.2-dev, and check the parts' configurations."""
        found = index if index is not None else read_index(locate(model), option, revision)
        problem = None
        if found.get("_class_name") == "Flux2Pipeline":
            problem = (
                "it is in FLUX.2-dev's layout: guidance is distilled into its 32 billion "
                "parameters, and its text encoder, Mistral 3, is not read here"
            )
        refuse_problem(problem, option, cls.family, cls.example)
        super().check_configs(model, where, revision, option, index)

    # ------------------------------------------------------------------ text

    @property
    def tokenize(self) -> Tokenize:
        """Return a function from prompts to `input_ids` and `attention_mask`, [B, L]."""
        return partial(_tokenize, self.tokenizer, self.max_sequence_length)

    @torch.no_grad()
    def encode(self, tokens: Tokens) -> Conditioning:
        """Encode tokens into `encoder_hidden_states` [B, L, 3 D]: three hidden states of Qwen 3."""
        ids, mask = (on_device_of(self.text_encoder, tokens[name]) for name in MASKED)
        found = self.text_encoder.model(
            input_ids=ids,
            attention_mask=readable(mask),
            output_hidden_states=True,
            use_cache=False,
        )
        layers = [found.hidden_states[layer] for layer in LAYERS]
        return {"encoder_hidden_states": torch.cat(layers, dim=-1)}

    def cut_off(self, prompt: str) -> str:
        """Return the end of a prompt that exceeds the number of tokens; "" if nothing does."""
        (text,) = _texts(self.tokenizer, [prompt])
        return chat_cut_off(self.tokenizer, prompt, text, self.max_sequence_length)

    # ------------------------------------------------------------------ networks

    def arguments(self, condition: Conditioning, dtype: torch.dtype) -> dict[str, Any]:
        """Return the features of text in the dtype."""
        return {name: value.to(dtype) for name, value in condition.items()}

    def size_arguments(self, x_t: Tensor, condition: Conditioning) -> dict[str, Any]:
        """Return the positions: a token's number in the text, row and column in the image."""
        text = x_t.new_zeros(condition["encoder_hidden_states"].shape[1], 4)
        text[:, 3] = torch.arange(len(text), dtype=text.dtype, device=text.device)
        height, width = x_t.shape[2:]
        return {"txt_ids": text, "img_ids": grid(height, width, x_t, axes=4)}

    def network_input(self, x_t: Tensor) -> Tensor:
        """Return the pixels of latents as tokens: [B, h w, C]."""
        return x_t.flatten(2).transpose(1, 2)

    def network_output(self, output: Tensor, x_t: Tensor) -> Tensor:
        """Return tokens as latents."""
        return self.unpacked(output, x_t.shape[1:])

    def packed(self, latents: Tensor) -> Tensor:
        """Return the pipeline's tokens of latents."""
        return self.network_input(latents)

    def unpacked(self, latents: Tensor, shape: Sequence[int]) -> Tensor:
        """Return the latents of the pipeline's tokens."""
        return latents.transpose(1, 2).reshape(len(latents), *shape)

    # ------------------------------------------------------------------ images

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents: undo the batch norm and the patches; float32, not clipped."""
        z = nn.functional.pixel_shuffle(self._unnormalised(latents.to(self.vae.dtype)), PATCH)
        return self.vae.decode(z, return_dict=False)[0].float()

    @torch.no_grad()
    def encode_images(self, images: Tensor) -> Tensor:
        """Encode images, the inverse of `decode`; the mean of the posterior, not a sample."""
        posterior = self.vae.encode(from_uint8(images).to(self.vae.dtype), return_dict=False)[0]
        return self.pipeline_latents(posterior.mean.float())

    def pipeline_latents(self, output: Tensor) -> Tensor:
        """Return the autoencoder's latents as the network's: patches, normalised."""
        patches = nn.functional.pixel_unshuffle(output, PATCH)
        mean, std = self._statistics(patches)
        return (patches - mean) / std

    def _unnormalised(self, latents: Tensor) -> Tensor:
        mean, std = self._statistics(latents)
        return latents * std + mean

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        norm = self.vae.bn
        mean, variance = (v.view(1, -1, 1, 1) for v in (norm.running_mean, norm.running_var))
        std = torch.sqrt(variance + self.vae.config.batch_norm_eps)
        return mean.to(like), std.to(like)

    # ------------------------------------------------------------------ diffusers

    def embeddings(self, condition: Conditioning) -> dict[str, Tensor]:
        """Return `prompt_embeds`."""
        return {"prompt_embeds": condition["encoder_hidden_states"]}


def _texts(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> list[str]:
    return chat(tokenizer, prompts, enable_thinking=False)


def _tokenize(tokenizer: PreTrainedTokenizerBase, length: int, prompts: Sequence[str]) -> Tokens:
    # The transformer attends to padding too, so its side matters: it is the tokenizer's.
    side = tokenizer.padding_side
    return tokenize_masked(tokenizer, _texts(tokenizer, prompts), length, side)


def _problem(config: Any, vae: AutoencoderKLFlux2, text: Any) -> str | None:
    """Describe the first parts that load but do not form a model of FLUX.2-klein."""
    packed = vae.config.latent_channels * PATCH**2
    features = len(LAYERS) * text.hidden_size
    if config.guidance_embeds:
        return "its transformer takes guidance as an input (guidance_embeds: FLUX.2-dev?)"
    if config.in_channels != packed or config.out_channels not in (None, packed):
        return (
            f"its transformer takes {config.in_channels} channels and returns "
            f"{config.out_channels}, and its VAE's latents have {packed} in patches of "
            f"{PATCH} x {PATCH}"
        )
    if config.joint_attention_dim != features:
        return (
            f"its transformer attends to {config.joint_attention_dim} features and its "
            f"text_encoder outputs {features}"
        )
    if text.num_hidden_layers < LAYERS[-1]:
        return f"its text encoder has {text.num_hidden_layers} layers, fewer than {LAYERS[-1]}"
    return axes_problem(config)
