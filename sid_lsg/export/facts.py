"""What a model card says of an exported generator."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, hf_hub_download

from sid_lsg.export.folder import make_scheduler
from sid_lsg.export.snippets import PLACE
from sid_lsg.files.sources import ARCHITECTURE, PREFIX, locate
from sid_lsg.messages.words import steps
from sid_lsg.options.choices import Layout
from sid_lsg.teachers.base import Teacher

CARD = "README.md"


@dataclass(frozen=True)
class Facts:
    """What a card says.

    Attributes:
        num_steps: The folder's number of steps.
        size: Height and width of an image in pixels.
        latent_shape: (C, H, W) of a latent.
        prediction_type: What the network predicts.
        tokens: How many a prompt is padded to, the padding's id, and its text; None for a teacher
            with several tokenizers or none.
        network: The network's name in diffusers' pipelines, and its class.
        scheduler: The class of the scheduler of diffusers that samples it, or of ours.
        pipeline_options: Arguments with which a pipeline samples it.
        config: The configuration of the training, if it is known.
        iterations: Of the training.
        versions: Of what trained it.
        summary: The run's summary.json, if it is of this generator.
        reports: Reports of `evaluate` on this generator.
        license: Its licence; None if the teacher does not say.
        layout: What the folder holds.
        dtype: Of the weights.
        model: Where readers find it: a Hub id, if it goes there.
    """

    num_steps: int
    size: tuple[int, int]
    latent_shape: tuple[int, ...]
    prediction_type: str
    tokens: tuple[int, int, str] | None
    network: tuple[str, str]
    scheduler: str
    pipeline_options: Mapping[str, Any]
    config: Mapping[str, Any] | None = None
    iterations: int | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    summary: Mapping[str, Any] | None = None
    reports: Sequence[Mapping[str, Any]] = ()
    license: str | None = None
    layout: Layout = "diffusers"
    dtype: str = "float32"
    model: str = PLACE

    @property
    def teacher(self) -> str:
        """The teacher's name, without the folders of the trainer's machine."""
        return public_name(str((self.config or {}).get("model", {}).get("teacher", "")))

    @property
    def data(self) -> str:
        """What it was trained on, besides the teacher."""
        if (self.config or {}).get("model", {}).get("real_data"):
            return "prompts, with an adversarial term on real images"
        return "prompts alone, without images"

    @property
    def steps(self) -> str:
        """How many steps it takes."""
        return steps(self.num_steps)


def facts_of(teacher: Teacher, t_init: int, num_steps: int, **known: Any) -> Facts:
    """Collect what the teacher's parts say, with everything else that is known.

    Args:
        teacher: The teacher.
        t_init: The generator's first timestep.
        num_steps: K.
        known: Further fields of `Facts`.
    """
    tokenizers = [*teacher.tokenizers.values()]
    tokens = None
    if len(tokenizers) == 1:
        (own,) = tokenizers
        tokens = own.model_max_length, own.pad_token_id, own.pad_token
    return Facts(
        num_steps=num_steps,
        size=teacher.image_size,
        latent_shape=teacher.latent_shape,
        prediction_type=teacher.schedule.prediction_type,
        tokens=tokens,
        network=(teacher.network_name, type(teacher.network).__name__),
        scheduler=type(make_scheduler(teacher, t_init, num_steps)).__name__,
        pipeline_options=teacher.pipeline_options,
        **known,
    )


def is_hub_id(name: str) -> bool:
    """Tell whether a model's name is a Hub id rather than a folder."""
    return locate(name).kind == "hub"


def public_name(name: str) -> str:
    """Return a model's name without the folders of the trainer's machine."""
    kept = name.startswith((PREFIX, ARCHITECTURE)) or is_hub_id(name)
    return name if kept else Path(name).name


def teacher_license(teacher: str, ask_hub: bool = False) -> str | None:
    """Return the licence that a teacher's own card names, if it has one.

    Args:
        teacher: Its folder or Hub id.
        ask_hub: Fetch the card of a Hub id, if it can be reached.
    """
    if teacher.startswith(PREFIX):
        return "apache-2.0"  # it is a part of this package
    path = locate(teacher).path / CARD
    try:
        if ask_hub and is_hub_id(teacher):
            path = Path(hf_hub_download(teacher, CARD))
        if not path.is_file():
            return None
        found = ModelCard.load(path, ignore_metadata_errors=True).data.get("license")
    except (OSError, ValueError, yaml.YAMLError):  # the Hub is out of reach, or it is no card
        return None
    return found if isinstance(found, str) else None
