"""The tiny model of each family; a family joins the tests of whole runs by one entry."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from diffusers import FlowMatchLCMScheduler
from diffusers.schedulers import scheduling_flow_match_lcm
from peft import PeftModel
from torch import Tensor

from tests.helpers.paths import GOLDEN_FLOW
from tests.helpers.tiny_pipelines import tiny_pipeline

PROMPTS = ["a red cat", "two dogs running", "a blue bird", "the moon"]
SEEDS = [3, 0, 7, 1]
TRANSFORMER = "transformer/diffusion_pytorch_model.safetensors"


@dataclass(frozen=True)
class TinyFamily:
    """A family's tiny model.

    Attributes:
        make: Finds or makes the model.
        network: The file of an exported generator's weights.
        size: Pixels per side of an image.
        options: Options of `fit` that the family needs.
        passes: NFE of a step of the guided teacher in its stock pipeline.
    """

    make: Callable[[], Path]
    network: str
    size: int
    options: Mapping[str, Any] = field(default_factory=dict)
    passes: int = 2

    @property
    def folder(self) -> Path:
        return self.make()


def recorded(name: str, network: str, size: int, **more: Any) -> TinyFamily:
    """Return a family whose model lies beside the recorded numbers."""
    return TinyFamily(lambda: GOLDEN_FLOW / "pipelines" / name, network, size, **more)


FAMILIES = {
    "sana": recorded("tiny_sana", TRANSFORMER, 256),
    "sdxl": recorded("tiny_sdxl", "unet/diffusion_pytorch_model.safetensors", 64),
    "sd3": recorded("tiny_sd3", TRANSFORMER, 64),
    "flux": recorded("tiny_flux", TRANSFORMER, 64, passes=1),
    "pixart": recorded("tiny_pixart", TRANSFORMER, 64),
    "flux2": TinyFamily(lambda: tiny_pipeline("flux2"), TRANSFORMER, 64),
    "qwen_image": TinyFamily(lambda: tiny_pipeline("qwen_image"), TRANSFORMER, 64),
    "z_image": TinyFamily(lambda: tiny_pipeline("z_image"), TRANSFORMER, 64),
}


def command(family: TinyFamily, folder: Path, **options: Any) -> list[str]:
    """Return a `fit` command of two iterations.

    Args:
        family: The family.
        folder: Where to write the prompts.
        options: Further options, with "__" in place of a dot.
    """
    prompts = folder / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS))
    chosen = {
        "seed_everything": 1,
        "model.teacher": family.folder,
        "model.guidance.scale": 2,
        "model.optimizer_fake.init_args.lr": 1e-3,
        "model.optimizer_generator.init_args.lr": 1e-3,
        "data.prompts": prompts,
        "data.batch_size": 2,
        "data.num_workers": 0,
        "data.num_heldout": 0,
        "trainer.accelerator": "cpu",
        "trainer.max_steps": 2,
        "trainer.logger": "false",
        "checkpoint.every_n_steps": 1,
        "image_grid.every_n_steps": 0,
        "metrics.clip": "null",
        "health.every_n_images": 0,
        "progress.refresh_rate": 0,
    }
    chosen |= dict(family.options) | {name.replace("__", "."): v for name, v in options.items()}
    return ["fit", *(f"--{name}={value}" for name, value in chosen.items())]


EVERYTHING = {  # the callbacks that sample
    "image_grid__every_n_steps": 2,
    "image_grid__num_images": 2,
    "metrics__clip": "package:demo/fashion/clip",
    "metrics__num_images": 4,
    "metrics__teacher_steps": 2,
    "health__every_n_images": 4,
    "health__num_prompts": 2,
    "health__num_seeds": 2,
    "health__teacher_steps": 2,
}
LORA = {"model__lora__fake_score__rank": 2, "model__lora__generator__rank": 2}
LEAN = {
    "model__memory__activations": "lean",
    "model__memory__checkpointing": "[fake_score, generator, teacher]",
    "model__text__device": "drop",
    "model__micro_batch_size": 1,
}


def load_adapters(pipeline: Any, folder: Path) -> None:
    """Load exported adapters into a stock pipeline; PixArt's need peft for it."""
    if hasattr(pipeline, "load_lora_weights"):
        pipeline.load_lora_weights(folder)
    else:
        pipeline.transformer = PeftModel.from_pretrained(pipeline.transformer, folder)


class SameNoise(FlowMatchLCMScheduler):
    """Draw noise as a teacher does; pipelines that hand no generator on use the global seed."""

    def __init__(self, scheduler: Any, teacher: Any, generators: Sequence[torch.Generator]) -> None:
        super().__init__(**{n: v for n, v in scheduler.config.items() if not n.startswith("_")})
        self.teacher, self.generators = teacher, generators

    def step(self, model_output: Tensor, *args: Any, **named: Any) -> Any:
        shape = self.teacher.latent_shape

        def draw(*_: Any, **__: Any) -> Tensor:
            noise = torch.stack([torch.randn(shape, generator=g) for g in self.generators])
            return self.teacher.packed(noise)

        with patch.object(scheduling_flow_match_lcm, "randn_tensor", draw):
            return super().step(model_output, *args, **named)


def stock_latents(
    pipeline: Any, num_steps: int, teacher: Any, seeds: Sequence[int] = SEEDS
) -> Tensor:
    """Sample a generator with its stock pipeline, with the noises that a teacher draws."""
    pipeline.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    if not teacher.hands_generator_on and isinstance(pipeline.scheduler, FlowMatchLCMScheduler):
        pipeline.scheduler = SameNoise(pipeline.scheduler, teacher, generators)
    output: Tensor = pipeline(
        prompt=list(PROMPTS),  # Z-Image's pipeline changes it
        num_inference_steps=num_steps,
        generator=generators,
        output_type="latent",
        **teacher.pipeline_options,
    ).images
    latents: Tensor = teacher.pipeline_latents(output)
    return latents
