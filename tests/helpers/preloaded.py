"""Import what a run needs, also what it imports late, and build the parser of `fit`."""

from contextlib import suppress
from functools import cache
from typing import NoReturn
from unittest.mock import patch

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
from sid_lsg.commands.fit import SiDCLI, fit

__all__ = ["diffusers", "pytest", "sid_lsg", "torch"]

# Lightning reads the metadata of all installed packages for each Trainer.
registry.entry_points = cache(registry.entry_points)

for _name in diffusers.DDPMScheduler._compatibles:
    getattr(diffusers, _name, None)


class _Built(Exception):
    """The parser has been built, and nothing has been run."""


def _stop(_: SiDCLI) -> NoReturn:
    raise _Built


with patch.object(SiDCLI, "_set_seed", _stop), suppress(_Built):
    fit(["--model.teacher=x", "--data.prompts=y"])
