"""Train tiny teachers of any family through `fit`, with grids, scores and an export."""

from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from sid_lsg.cli import main

PROMPTS = ["a photo of the red cat", "two dogs running", "a blue bird on the street", "the moon"]


def fit(teacher: str | Path, root: Path, steps: int, **options: Any) -> None:
    """Train for some iterations; options have `_` for `.`-free names, as in `num_steps`."""
    prompts = root.parent / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS))
    given = {
        "seed_everything": 1,
        "model.teacher": teacher,
        "model.guidance.scale": 2,
        "model.optimizer_fake.init_args.lr": 0.001,
        "model.optimizer_generator.init_args.lr": 0.001,
        "data.prompts": prompts,
        "data.batch_size": 2,
        "data.num_workers": 0,
        "trainer.accelerator": "cpu",
        "trainer.max_steps": steps,
        "trainer.default_root_dir": root,
        "trainer.logger": "false",
        "checkpoint.every_n_steps": 1,
        "image_grid.every_n_steps": 2,
        "image_grid.num_images": 2,
        "progress.refresh_rate": 0,
        "metrics.clip": "package:demo/fashion/clip",
        "metrics.num_images": 2,
        "metrics.teacher_steps": 2,
        "health.every_n_images": 4,
        "health.num_prompts": 2,
        "health.num_seeds": 2,
        "health.teacher_steps": 1,
    }
    main(["fit", *(f"--{name}={value}" for name, value in (given | options).items())])


def weights(root: Path) -> dict[str, Tensor]:
    """Return the exported generator's weights."""
    return load_file(root / "generator" / "transformer" / "diffusion_pytorch_model.safetensors")
