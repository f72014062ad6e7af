"""Record the steps of a stock pipeline: latents, times, and what its scheduler is given."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

STEPS = 3


class Step(NamedTuple):
    """A step of a scheduler.

    Attributes:
        prediction: The pipeline's guided prediction, in the layout of its latents.
        t: The time.
        x_t: The latents.
    """

    prediction: Tensor
    t: Tensor
    x_t: Tensor


def recorded(pipeline: Any, prompts: Sequence[str], **options: Any) -> tuple[list[Step], Tensor]:
    """Sample a pipeline; return the scheduler's steps and the images in [-1, 1]."""
    found: list[Step] = []
    step: Callable[..., Any] = pipeline.scheduler.step

    def keep(prediction: Tensor, t: Tensor, x_t: Tensor, *more: Any, **named: Any) -> Any:
        found.append(Step(prediction.clone(), torch.as_tensor(t).clone(), x_t.clone()))
        return step(prediction, t, x_t, *more, **named)

    pipeline.scheduler.step = keep
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(
        prompt=list(prompts),
        num_inference_steps=STEPS,
        generator=[torch.Generator().manual_seed(seed) for seed in range(len(prompts))],
        output_type="pt",
        **options,
    ).images
    pipeline.scheduler.step = step
    return found, 2 * images - 1
