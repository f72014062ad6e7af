"""Which schedulers of diffusers sample a generator of two steps (docs/guide/export.md)."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    LCMScheduler,
    TCDScheduler,
)
from torch import Tensor

from sid_lsg.teachers.stable_diffusion import StableDiffusion

PROMPT, TIMES = "a red cat", [625, 312]
BETAS: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
}


def trailing(kind: Any, betas: Tensor, **options: Any) -> Any:
    """Return a scheduler whose two timesteps are the generator's, without the later betas."""
    own = {"trained_betas": betas[:626].tolist(), "num_train_timesteps": 626}
    return kind(**own, timestep_spacing="trailing", steps_offset=1, **options)


SCHEDULERS: dict[str, tuple[Callable[[Tensor], Any], bool]] = {
    "LCM": (lambda _: LCMScheduler(**BETAS, timestep_scaling=1e4), True),
    "TCD": (lambda _: TCDScheduler(**BETAS), True),
    "DDIM": (lambda betas: trailing(DDIMScheduler, betas, clip_sample=False), False),
    "Euler ancestral": (lambda betas: trailing(EulerAncestralDiscreteScheduler, betas), False),
    "DPM-Solver SDE": (
        lambda betas: trailing(
            DPMSolverMultistepScheduler, betas, algorithm_type="sde-dpmsolver++", solver_order=1
        ),
        False,
    ),
}


def difference(name: str, scaled: bool, tiny_sd: str) -> float:
    """Return the relative difference to our latents, for the same noises."""
    teacher = StableDiffusion.from_pretrained(tiny_sd)
    ours = teacher.generate(teacher.network, [PROMPT], [0], TIMES[0], len(TIMES))
    make, chooses_times = SCHEDULERS[name]
    scheduler = make(LCMScheduler(**BETAS).betas)
    pipeline = DiffusionPipeline.from_pretrained(tiny_sd, scheduler=scheduler)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(1, *teacher.latent_shape, generator=generator)
    factor = (1 - scheduler.alphas_cumprod[TIMES[0]]).sqrt() if scaled else 1.0
    found = pipeline(
        PROMPT,
        latents=factor * noise,
        **({"timesteps": TIMES} if chooses_times else {"num_inference_steps": len(TIMES)}),
        guidance_scale=0,
        eta=1.0,
        generator=generator,
        output_type="latent",
    ).images
    return float((found - ours).norm() / ours.norm())


def test_lcm_is_exact_with_a_scaled_first_latent(tiny_sd: str) -> None:
    assert difference("LCM", True, tiny_sd) < 1e-4


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.slow
def test_no_scheduler_is_exact_by_its_configuration(name: str, tiny_sd: str) -> None:
    assert difference(name, False, tiny_sd) > 1e-3
