"""Change a model's folder, and read how it is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from sid_lsg.messages.errors import UsageError
from sid_lsg.teachers import families

WEIGHTS = {  # files of Stable Diffusion's parts
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}


def edit(path: Path, **values: Any) -> None:
    """Set values of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def refusal(model: str | Path, **options: Any) -> str:
    """Return the message with which `families.load` refuses a model."""
    with pytest.raises(UsageError) as caught:
        families.load(str(model), **options)
    return str(caught.value)
