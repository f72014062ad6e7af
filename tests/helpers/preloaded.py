"""Import what a run needs, including what it imports late: to load and to save a pipeline."""

from functools import cache

import diffusers
import diffusers.guiders
import diffusers.pipelines.onnx_utils
import diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion
import pytest
import torch.utils.serialization.config
from lightning.fabric.utilities import registry

import sid_lsg.commands.fit
import sid_lsg.loggers
import sid_lsg.teachers.stable_diffusion

__all__ = ["diffusers", "pytest", "sid_lsg", "torch"]

# Lightning reads the metadata of all installed packages for each Trainer.
registry.entry_points = cache(registry.entry_points)

for _name in diffusers.DDPMScheduler._compatibles:
    getattr(diffusers, _name, None)
