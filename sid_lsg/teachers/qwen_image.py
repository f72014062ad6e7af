"""Qwen-Image as a teacher: MMDiT, Wan's autoencoder for one frame, Qwen 2.5 VL."""

from collections.abc import Mapping, Sequence
from functools import cache, partial
from typing import Any, ClassVar

import torch
from diffusers import (
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
)
from torch import Tensor
from transformers import (
    PreTrainedTokenizerBase,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2TokenizerFast,
)

from sid_lsg.images.pixels import from_uint8
from sid_lsg.messages.checks import beside
from sid_lsg.method.conditioning import Conditioning
from sid_lsg.method.flow import FlowSchedule
from sid_lsg.method.guidance import Rescale
from sid_lsg.teachers.base import Tokenize, Tokens
from sid_lsg.teachers.checks import Fields, names, refuse_problem
from sid_lsg.teachers.fields import QWEN_VL
from sid_lsg.teachers.lengths import ChosenLength
from sid_lsg.teachers.packing import PATCH, axes_problem, pack, unpack
from sid_lsg.teachers.qwen_image_architectures import ARCHITECTURES
from sid_lsg.teachers.text import MASKED, chat_cut_off, on_device_of, tokenize_masked
from sid_lsg.teachers.unsized import PackedTeacher
from sid_lsg.teachers.untrained import Architecture


class QwenImage(ChosenLength, PackedTeacher):
    """A model in the layout of Qwen-Image: MMDiT, autoencoder of videos, Qwen 2.5 VL.

    As in the pipeline, a guided prediction is rescaled to the norm of that with the prompt.
    """

    family = "Qwen-Image"
    original_layout = "qwen-image"
    example = "Qwen/Qwen-Image"
    pipeline_class = QwenImagePipeline
    parts: ClassVar[Mapping[str, type]] = {
        "transformer": QwenImageTransformer2DModel,
        "vae": AutoencoderKLQwenImage,
        "text_encoder": Qwen2_5_VLForConditionalGeneration,
        "tokenizer": Qwen2TokenizerFast,
        "scheduler": FlowMatchEulerDiscreteScheduler,
    }
    fields: ClassVar[Mapping[str, Fields]] = {
        "transformer": Fields(
            names(
                "in_channels out_channels num_layers attention_head_dim num_attention_heads "
                "joint_attention_dim axes_dims_rope guidance_embeds pooled_projection_dim"
            ),
            {
                "patch_size": (2,),
                "zero_cond_t": (False, None),
                "use_additional_t_cond": (False, None),
                "use_layer3d_rope": (False, None),
            },
        ),
        "vae": Fields(
            names("base_dim z_dim dim_mult num_res_blocks attn_scales temperal_downsample dropout"),
            {"input_channels": (3,)},
            numbers=names("latents_mean latents_std"),
        ),
        "text_encoder": QWEN_VL,
    }
    architectures: ClassVar[Mapping[str, Architecture]] = ARCHITECTURES
    usual_length = 512
    most_length = 1024
    pipeline_scale: ClassVar[Mapping[str, Any]] = {"true_cfg_scale": 1}
    network: QwenImageTransformer2DModel

    def __init__(
        self,
        transformer: QwenImageTransformer2DModel,
        vae: AutoencoderKLQwenImage,
        text_encoder: Qwen2_5_VLForConditionalGeneration,
        tokenizer: PreTrainedTokenizerBase,
        scheduler: FlowMatchEulerDiscreteScheduler,
        resolution: int | None = None,
        option: str = "model.teacher",
    ) -> None:
        """Combine the parts, check that they fit, and freeze them.

        Args:
            transformer: The denoiser.
            vae: The autoencoder.
            text_encoder: Qwen 2.5 VL; its part for images is not used.
            tokenizer: Qwen 2.5's tokenizer.
            scheduler: Gives the shift for sampling the teacher.
            resolution: Pixels per side of an image; by default 1024.
            option: The option that named the model, for messages.

        Raises:
            UsageError: If the parts are not Qwen-Image's, or cannot take the resolution.
        """
        super().__init__()
        problem = _problem(transformer.config, vae, text_encoder.config.get_text_config())
        refuse_problem(problem, option, self.family, self.example)
        self.network = transformer
        self.vae = vae
        self.text_encoder = text_encoder
        self.tokenizer = tokenizer
        self.scheduler_config = dict(scheduler.config)
        self.schedule = FlowSchedule(time_factor=1)  # the network multiplies it by 1000
        channels, factor = vae.config.z_dim, 2 ** len(vae.config.temperal_downsample)
        self.set_size(channels, factor, PATCH, resolution, beside(option, "resolution"))
        self.freeze()

    # ------------------------------------------------------------------ text

    @property
    def tokenize(self) -> Tokenize:
        """Return a function from prompts to `input_ids` and `attention_mask`, [B, 34 + L]."""
        return partial(_tokenize, self.tokenizer, self.max_sequence_length)

    @torch.no_grad()
    def encode(self, tokens: Tokens) -> Conditioning:
        """Encode tokens.

        Returns:
            `encoder_hidden_states` [B, L, D], the last hidden states after those of the pipeline's
            instruction, 0 for padding; `encoder_hidden_states_mask` [B, L] int64, 0 for padding.
        """
        ids, mask = (on_device_of(self.text_encoder, tokens[name]) for name in MASKED)
        _, dropped = _template()
        hidden = self.text_encoder.model.language_model(
            input_ids=ids,
            # transformers reads the values of a mask, which the meta device does not have.
            attention_mask=None if mask.is_meta else mask,
            use_cache=False,
        ).last_hidden_state
        kept = mask[:, dropped:]
        return {
            "encoder_hidden_states": hidden[:, dropped:] * kept[..., None].to(hidden.dtype),
            "encoder_hidden_states_mask": kept,
        }

    def cut_off(self, prompt: str) -> str:
        """Return the end of a prompt that exceeds the number of tokens; "" if nothing does."""
        template, dropped = _template()
        length = self.max_sequence_length + dropped
        return chat_cut_off(self.tokenizer, prompt, template.format(prompt), length)

    # ------------------------------------------------------------------ networks

    @property
    def rescale(self) -> Rescale:
        """Return the pipeline's rescaling of a guided prediction, per token."""
        return _rescale

    def arguments(self, condition: Conditioning, dtype: torch.dtype) -> dict[str, Any]:
        """Return the features of text in the dtype, and their mask."""
        return condition | {"encoder_hidden_states": condition["encoder_hidden_states"].to(dtype)}

    def size_arguments(self, x_t: Tensor, condition: Conditioning) -> dict[str, Any]:
        """Return the frames, rows and columns of tokens of each image."""
        height, width = (side // PATCH for side in x_t.shape[2:])
        return {"img_shapes": [[(1, height, width)]] * len(x_t)}

    # ------------------------------------------------------------------ images

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents as one frame: float32, not clipped."""
        mean, std = self._statistics(latents)
        z = (latents * std + mean).to(self.vae.dtype).unsqueeze(2)
        return self.vae.decode(z, return_dict=False)[0][:, :, 0].float()

    @torch.no_grad()
    def encode_images(self, images: Tensor) -> Tensor:
        """Encode images, the inverse of `decode`; the mean of the posterior, not a sample."""
        frames = from_uint8(images).to(self.vae.dtype).unsqueeze(2)
        latents = self.vae.encode(frames, return_dict=False)[0].mean[:, :, 0].float()
        mean, std = self._statistics(latents)
        return (latents - mean) / std

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        values = self.vae.config.latents_mean, self.vae.config.latents_std
        mean, std = (like.new_tensor(one).view(1, -1, 1, 1) for one in values)
        return mean, std

    # ------------------------------------------------------------------ diffusers

    def embeddings(self, condition: Conditioning) -> dict[str, Tensor]:
        """Return `prompt_embeds` and `prompt_embeds_mask`."""
        return {
            "prompt_embeds": condition["encoder_hidden_states"],
            "prompt_embeds_mask": condition["encoder_hidden_states_mask"],
        }

    def reference_guidance(self, scale: float) -> dict[str, Any]:
        """Return the scale of true CFG."""
        return {"true_cfg_scale": scale}


@cache
def _template() -> tuple[str, int]:
    """Return the pipeline's instruction with {} for a prompt, and its tokens before the prompt."""
    stock: Any = QwenImagePipeline(None, None, None, None, None)
    return stock.prompt_template_encode, stock.prompt_template_encode_start_idx


def _tokenize(tokenizer: PreTrainedTokenizerBase, length: int, prompts: Sequence[str]) -> Tokens:
    template, dropped = _template()
    texts = [template.format(prompt) for prompt in prompts]
    return tokenize_masked(tokenizer, texts, length + dropped)


def _rescale(guided: Tensor, cond: Tensor) -> Tensor:
    shape, tokens = guided.shape[1:], pack(guided)
    norm = pack(cond).norm(dim=-1, keepdim=True) / tokens.norm(dim=-1, keepdim=True)
    return unpack(tokens * norm, shape)


def _problem(config: Any, vae: AutoencoderKLQwenImage, text: Any) -> str | None:
    """Describe the first parts that load but do not form a model of Qwen-Image."""
    latents = vae.config.z_dim
    if config.guidance_embeds:
        return "its transformer takes guidance as an input (guidance_embeds)"
    if config.in_channels != latents * PATCH**2 or config.out_channels != latents:
        return (
            f"its transformer takes {config.in_channels} channels and returns "
            f"{config.out_channels} per pixel, and its VAE's latents have {latents}"
        )
    if config.joint_attention_dim != text.hidden_size:
        return (
            f"its transformer attends to {config.joint_attention_dim} features and its "
            f"text_encoder outputs {text.hidden_size}"
        )
    if {len(vae.config.latents_mean), len(vae.config.latents_std)} != {latents}:
        return f"its VAE has not {latents} means and deviations (latents_mean, latents_std)"
    return axes_problem(config)
