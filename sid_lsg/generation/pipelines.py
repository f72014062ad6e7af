"""Load and sample any diffusers pipeline."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sid_lsg.files.loading import explained
from sid_lsg.files.sources import locate
from sid_lsg.messages.checks import refuse
from sid_lsg.messages.errors import UsageError

_REMEDY = (
    "Give a folder in diffusers' layout with safetensors weights, or a Hub id that this machine "
    "can reach."
)
_MULTIPLE = 8  # pixels; diffusers' pipelines require it for every VAE


def load(model: str, dtype: torch.dtype, resolution: int | None, option: str) -> Any:
    """Load any diffusers pipeline, from safetensors only.

    Args:
        model: A folder in diffusers' layout or a Hub id.
        dtype: Dtype of the networks.
        resolution: Pixels per side of an image; by default the model's.
        option: The option that named the model, for messages.

    Raises:
        UsageError: If the pipeline cannot be loaded or does not accept the resolution.
    """
    from diffusers import DiffusionPipeline

    with explained(f"--{option}: could not load a diffusers pipeline from {model!r}", _REMEDY):
        pipeline = DiffusionPipeline.from_pretrained(
            locate(model).location, torch_dtype=dtype, use_safetensors=True, low_cpu_mem_usage=False
        )
    multiple = math.lcm(_MULTIPLE, getattr(pipeline, "vae_scale_factor", 1))
    if resolution is not None and resolution % multiple:
        refuse("resolution", resolution, f"a multiple of {multiple} for {model!r}")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def sampler(
    pipeline: Any, num_steps: int, guidance: float, resolution: int | None
) -> Callable[[Sequence[str], Sequence[int]], Tensor]:
    """Return a function from prompts and seeds to images [B, 3, H, W] in [-1, 1].

    The function raises UsageError if the pipeline's own checks reject the settings.
    """
    size = {} if resolution is None else {"height": resolution, "width": resolution}

    @torch.no_grad()
    def sample(prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        try:
            images = pipeline(
                list(prompts),
                num_inference_steps=num_steps,
                guidance_scale=guidance,
                generator=[torch.Generator().manual_seed(seed) for seed in seeds],
                output_type="pt",
                **size,
            ).images
        except ValueError as error:
            raise UsageError(
                f"--resolution, --num_steps, --guidance: {type(pipeline).__name__} rejects these "
                f"values ({error}). Give others."
            ) from error
        return images.float() * 2 - 1

    return sample
