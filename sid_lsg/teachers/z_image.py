"""Z-Image as a teacher: single-stream DiT with lists as inputs, KL autoencoder, Qwen 3."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, Qwen2TokenizerFast, Qwen3Model

from sid_lsg.messages.checks import beside
from sid_lsg.method.conditioning import Conditioning
from sid_lsg.method.flow import FlowSchedule
from sid_lsg.teachers.autoencoder import vae_factor
from sid_lsg.teachers.base import Tokenize, Tokens
from sid_lsg.teachers.checks import Fields, names, refuse_problem
from sid_lsg.teachers.fields import KL_VAE, QWEN_TEXT
from sid_lsg.teachers.lengths import ChosenLength
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
from sid_lsg.teachers.z_image_architectures import ARCHITECTURES

_PATCH = 2
_FINAL = f"{_PATCH}-1"  # the network's name for patches of this size of one frame


class ZImage(ChosenLength, UnsizedTeacher):
    """A model in the layout of Z-Image: single-stream DiT, KL autoencoder, Qwen 3.

    The network takes lists of images and of texts of any length and 1 - t, and returns -v.
    """

    family = "Z-Image"
    original_layout = "z-image"
    example = "Tongyi-MAI/Z-Image"
    pipeline_class = ZImagePipeline
    parts: ClassVar[Mapping[str, type]] = {
        "transformer": ZImageTransformer2DModel,
        "vae": AutoencoderKL,
        "text_encoder": Qwen3Model,
        "tokenizer": Qwen2TokenizerFast,
        "scheduler": FlowMatchEulerDiscreteScheduler,
    }
    fields: ClassVar[Mapping[str, Fields]] = {
        "transformer": Fields(
            names(
                "in_channels dim n_layers n_refiner_layers n_heads n_kv_heads norm_eps qk_norm "
                "cap_feat_dim rope_theta t_scale axes_dims axes_lens"
            ),
            {
                "all_patch_size": ((2,), [2]),
                "all_f_patch_size": ((1,), [1]),
                "siglip_feat_dim": (None,),
            },
        ),
        "vae": KL_VAE.but(shift_factor=(...,)),
        "text_encoder": QWEN_TEXT,
    }
    architectures: ClassVar[Mapping[str, Architecture]] = ARCHITECTURES
    vae_scale = 0.3611
    usual_length = 512
    pipeline_scale: ClassVar[Mapping[str, Any]] = {"guidance_scale": 0}
    network: ZImageTransformer2DModel

    def __init__(
        self,
        transformer: ZImageTransformer2DModel,
        vae: AutoencoderKL,
        text_encoder: Qwen3Model,
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
            UsageError: If the parts are not Z-Image's, or cannot take the resolution.
        """
        super().__init__()
        problem = _problem(transformer.config, vae, text_encoder.config)
        refuse_problem(problem, option, self.family, self.example)
        self.network = transformer
        self.vae = vae
        self.text_encoder = text_encoder
        self.tokenizer = tokenizer
        self.scheduler_config = dict(scheduler.config)
        self.schedule = FlowSchedule(time_factor=-1, time_offset=1)
        channels, place = vae.config.latent_channels, beside(option, "resolution")
        self.set_size(channels, vae_factor(vae), _PATCH, resolution, place)
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
            `encoder_hidden_states` [B, L, D], Qwen 3's last but one hidden states, and
            `encoder_attention_mask` [B, L] int64, 0 for padding, which the network never gets.
        """
        ids, mask = (on_device_of(self.text_encoder, tokens[name]) for name in MASKED)
        found = self.text_encoder(
            input_ids=ids,
            attention_mask=readable(mask),
            output_hidden_states=True,
            use_cache=False,
        )
        hidden = found.hidden_states[-2]
        return {"encoder_hidden_states": hidden, "encoder_attention_mask": mask}

    def cut_off(self, prompt: str) -> str:
        """Return the end of a prompt that exceeds the number of tokens; "" if nothing does."""
        (text,) = _texts(self.tokenizer, [prompt])
        return chat_cut_off(self.tokenizer, prompt, text, self.max_sequence_length)

    # ------------------------------------------------------------------ networks

    def arguments(self, condition: Conditioning, dtype: torch.dtype) -> dict[str, Any]:
        """Return the features of each text in the dtype, without padding."""
        return {"cap_feats": _texts_alone(condition, dtype)}

    def network_input(self, x_t: Tensor) -> list[Tensor]:
        """Return each image's latents, [C, 1, h, w]."""
        return list(x_t.unsqueeze(2).unbind())

    def call(self, network: nn.Module, given: Any, time: Tensor, named: Mapping[str, Any]) -> Any:
        """Call the network with its lists."""
        return network(given, time, return_dict=False, **named)[0]

    def network_output(self, output: list[Tensor], x_t: Tensor) -> Tensor:
        """Return v, the network's output with the opposite sign."""
        return -torch.stack(output).squeeze(2)

    def end_of_encoder(self, network: nn.Module) -> nn.Module:
        """Return the final norm, whose output has the image's and the text's tokens."""
        layers: Any = network.all_final_layer
        norm: nn.Module = layers[_FINAL].norm_final
        return norm

    # ------------------------------------------------------------------ diffusers

    def embeddings(self, condition: Conditioning) -> dict[str, Any]:
        """Return `prompt_embeds`, a tensor per prompt."""
        return {"prompt_embeds": _texts_alone(condition, torch.float32)}

    def reference_guidance(self, scale: float) -> dict[str, Any]:
        """Return the pipeline's scale, which is 0 without guidance."""
        return {"guidance_scale": scale - 1}


def _texts(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> list[str]:
    return chat(tokenizer, prompts, enable_thinking=True)


def _tokenize(tokenizer: PreTrainedTokenizerBase, length: int, prompts: Sequence[str]) -> Tokens:
    return tokenize_masked(tokenizer, _texts(tokenizer, prompts), length)


def _texts_alone(condition: Conditioning, dtype: torch.dtype) -> list[Tensor]:
    """Return the features of each text without padding; on the meta device, with it."""
    hidden, mask = condition["encoder_hidden_states"], condition["encoder_attention_mask"]
    lengths = [mask.shape[1]] * len(mask) if mask.is_meta else mask.sum(1).tolist()
    return [own[:n].to(dtype) for own, n in zip(hidden, lengths, strict=True)]


def _problem(config: Any, vae: AutoencoderKL, text: Any) -> str | None:
    """Describe the first parts that load but do not form a model of Z-Image."""
    latents = vae.config.latent_channels
    if config.in_channels != latents:
        return (
            f"its transformer takes {config.in_channels} channels and its VAE's latents have "
            f"{latents}"
        )
    if config.cap_feat_dim != text.hidden_size:
        return (
            f"its transformer attends to {config.cap_feat_dim} features and its text_encoder "
            f"outputs {text.hidden_size}"
        )
    return None
