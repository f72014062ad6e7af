"""Read the official code's numbers for flow-matching teachers, and compare with them."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from sid_lsg.method.conditioning import Conditioning
from sid_lsg.teachers.base import Teacher
from sid_lsg.teachers.families import FAMILIES, load
from tests.helpers.golden import error, fingerprint
from tests.helpers.paths import GOLDEN_FLOW

# The index's advice.
OUTPUT = 2e-5  # relative L2
LOSS = 2e-5
GRADIENT = 2e-4  # per parameter, relative to its norm or 1e-4 of the whole gradient's
FLOOR = 1e-4
LOSS_TRAJECTORY = 2e-3
MOVED = 2e-2

# What the official code calls our conditioning.
NAMES = {
    "prompt_embeds": "encoder_hidden_states",
    "pooled": "pooled_projections",
    "mask": "encoder_attention_mask",
}


@dataclass
class GoldenFlow:
    """A folder of recorded numbers; what it lacks comes from the repository.

    The files are in the folder itself or in its `golden/`; pipelines in its `pipelines/` or in the
    `pipelines/` beside it.
    """

    root: Path
    index: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        if (self.root / "golden" / "index.json").exists():
            self.root = self.root / "golden"
        self.ours = GOLDEN_FLOW / "golden"
        ours = json.loads((self.ours / "index.json").read_text())
        path = self.root / "index.json"
        own = json.loads(path.read_text()) if path.exists() else {"files": {}}
        self.index = ours | own | {"files": ours["files"] | own["files"]}
        self.index["param_names"] = ours["param_names"] | own.get("param_names", {})

    def names(self, *patterns: str) -> list[str]:
        """Return the files in the folder that match a pattern, without their ending."""
        found = {path.stem for pattern in patterns for path in self.root.glob(pattern)}
        return sorted(found)

    def tensors(self, name: str) -> dict[str, Tensor]:
        file = f"{name.removesuffix('.safetensors')}.safetensors"
        root = self.root if (self.root / file).exists() else self.ours
        return load_file(root / file)

    def entry(self, name: str) -> dict[str, Any]:
        return self.index["files"][f"{name.removesuffix('.safetensors')}.safetensors"]

    def pipeline(self, family: str) -> Path:
        """Return the family's tiny pipeline; skip the test if its family is not registered."""
        places = (self.root, self.root.parent, GOLDEN_FLOW)
        found = [place / "pipelines" / f"tiny_{family}" for place in places]
        folder = next(path for path in found if path.is_dir())
        kind = json.loads((folder / "model_index.json").read_text())["_class_name"]
        if kind not in FAMILIES:
            pytest.skip(f"no family for {kind}")
        return folder

    def teacher(self, family: str, official_text: bool = True) -> Teacher:
        """Load a tiny pipeline, with the lengths of the official code's text or the pipeline's."""
        teacher = load(str(self.pipeline(family)))
        if official_text:
            self.use_official_text(teacher, family)
        return teacher

    def use_official_text(self, teacher: Any, family: str) -> None:
        """Use as many tokens of T5 as the official code does for Stable Diffusion 3."""
        if family == "sd3":
            whole = self.tensors("sd3_text")["prompt_embeds"].shape[1]
            clip = teacher.tokenizers["tokenizer"].model_max_length
            teacher.max_sequence_length = whole - clip

    def resize(self, teacher: Any, entry: dict[str, Any]) -> None:
        """Give a teacher the size and the length of text of a recorded call of its pipeline."""
        height, width = entry["height"], entry["width"]
        factor = teacher.image_size[0] // teacher.latent_shape[1]
        teacher.image_size = height, width
        teacher.latent_shape = (teacher.latent_shape[0], height // factor, width // factor)
        if (length := entry.get("extra", {}).get("max_sequence_length")) is not None:
            teacher.max_sequence_length = length

    def load(self, name: str, family: str, network: torch.nn.Module) -> None:
        network.load_state_dict(self.tensors(f"{family}_weights_{name}"))


def recorded_condition(text: Mapping[str, Tensor], prefix: str = "") -> Conditioning:
    """Return recorded features as conditioning, by our names."""
    found = {}
    for name, ours in NAMES.items():
        theirs = name if not prefix else f"{prefix}{name.removeprefix('prompt_')}"
        if theirs in text:
            found[ours] = text[theirs]
    return found


def noises(recorded: Mapping[str, Tensor], prefix: str, k: int) -> list[Tensor]:
    """Return the noises of the k steps that are run; z where a step has no noise of its own."""
    z = recorded[f"{prefix}z"]
    return [z, *(recorded.get(f"{prefix}extra{i}", z) for i in range(1, k))]


def flattened(tree: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the tensors among a network's arguments, by their own names."""
    found: dict[str, Tensor] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            found |= flattened(value)
        elif value is not None:
            found[name] = value
    return found


def check_gradients(
    names: Iterable[str],
    gradients: Iterable[Tensor],
    expected: Mapping[str, Tensor],
    prefix: str,
    scale: float = 1.0,
) -> None:
    """Compare gradients with recorded fingerprints, and those recorded whole number by number.

    Args:
        names: The parameters' names.
        gradients: Their gradients.
        expected: The recorded numbers.
        prefix: What the recorded names begin with.
        scale: What our gradients are multiplied by before.
    """
    ours = {name: scale * g.double() for name, g in zip(names, gradients, strict=True)}
    theirs = expected[f"{prefix}grad_fingerprint"]
    whole = float(theirs[:, 0].norm())
    actual = fingerprint([*ours.values()])
    for (name, own), norm, wave, other in zip(
        ours.items(), actual[:, 0], actual[:, 1], theirs, strict=True
    ):
        allowed = GRADIENT * max(float(other[0]), FLOOR * whole)
        assert abs(norm - other[0]) < allowed, name
        # A projection on cosines adds up errors of all entries with weights of about 0.7.
        assert abs(wave - other[1]) < allowed * max(1.0, (own.numel() / 2) ** 0.5), name
        if (full := expected.get(f"{prefix}grad.{name}")) is not None:
            distance = float((own - full.double()).norm())
            assert distance < GRADIENT * max(float(full.norm()), FLOOR * whole), name


def close(actual: Tensor, expected: Tensor, tolerance: float = OUTPUT) -> None:
    assert error(actual, expected) < tolerance
