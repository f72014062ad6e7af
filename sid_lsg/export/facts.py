"""Collect the facts about an exported generator for its model card."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, hf_hub_download

from sid_lsg.export.comfyui import beside_of
from sid_lsg.export.folder import make_scheduler
from sid_lsg.export.lora_file import by_peft
from sid_lsg.export.original.models import ORIGINALS
from sid_lsg.export.snippets import PLACE
from sid_lsg.files.sources import ARCHITECTURE, PREFIX, locate
from sid_lsg.messages.words import steps
from sid_lsg.method.choices import Noise
from sid_lsg.options.choices import Format
from sid_lsg.options.guidance import Guidance
from sid_lsg.teachers.base import Teacher

CARD, EXAMPLE = "README.md", "example.png"


@dataclass(frozen=True)
class Facts:
    """The facts in a model card.

    Attributes:
        num_steps: Number of steps of the exported scheduler.
        size: Height and width of an image in pixels.
        latent_shape: (C, H, W) of a latent.
        prediction_type: What the network predicts.
        tokens: Length that prompts are padded to, and the padding's id and text; None for a teacher
            with several tokenizers or none.
        network: The network's name in diffusers' pipelines, and its class.
        scheduler: Class of the exported scheduler: one of diffusers or `SiDScheduler`.
        pipeline: Class of the family's pipeline.
        pipeline_options: Arguments of the pipeline call.
        missing_parts: Parts of the pipeline that the teacher lacks.
        global_noise: Whether the noise of later steps follows PyTorch's global seed.
        config: The training's configuration, if known.
        iterations: The training's number of iterations, if known.
        versions: Versions of the software that trained it.
        summary: The run's summary.json, if it belongs to this generator.
        reports: Reports of `evaluate` on this generator.
        license: Its licence; None if the teacher states none.
        format: The folder's format.
        dtype: Dtype of the weights.
        model: Where readers find it: a Hub id if it is uploaded.
        file: The name of the file with the weights, for formats of one file.
        t_init: The generator's first timestep.
        alone: Whether a single file holds the network alone.
        beside: The text encoder's and the autoencoder's files that ComfyUI then loads.
        has_lora: Whether the folder also holds the generator as adapters, in `lora/`.
        peft: Whether peft loads adapters, since the pipeline does not.
        has_example: Whether the folder holds images of the generator, `example.png`.
    """

    num_steps: int
    size: tuple[int, int]
    latent_shape: tuple[int, ...]
    prediction_type: str
    tokens: tuple[int, int, str] | None
    network: tuple[str, str]
    scheduler: str
    pipeline: str
    pipeline_options: Mapping[str, Any]
    missing_parts: Sequence[str] = ()
    global_noise: bool = False
    config: Mapping[str, Any] | None = None
    iterations: int | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    summary: Mapping[str, Any] | None = None
    reports: Sequence[Mapping[str, Any]] = ()
    license: str | None = None
    format: Format = "diffusers"
    dtype: str = "float32"
    model: str = PLACE
    file: str = "generator.safetensors"
    t_init: int = 0
    alone: bool = False
    beside: tuple[str, str] | None = None
    has_lora: bool = False
    peft: bool = False
    has_example: bool = False

    @property
    def teacher(self) -> str:
        """Return the teacher's name without its local folders."""
        return public_name(str((self.config or {}).get("model", {}).get("teacher", "")))

    @property
    def data(self) -> str:
        """Return the training data as a phrase."""
        if (self.config or {}).get("model", {}).get("real_data"):
            return "prompts, with an adversarial term on real images"
        return "prompts only, without images"

    @property
    def kappas(self) -> tuple[float, ...] | None:
        """Return kappa_1..kappa_4 of the training, if known."""
        if not self.config:
            return None
        known = {f.name for f in fields(Guidance)}
        options = self.config["model"].get("guidance") or {}
        return Guidance(**{k: v for k, v in options.items() if k in known}).kappas

    @property
    def steps(self) -> str:
        """Return the number of steps in words."""
        return steps(self.num_steps)


def facts_of(
    teacher: Teacher, t_init: int, num_steps: int, noise: Noise = "fresh", **known: Any
) -> Facts:
    """Collect facts from the teacher, and combine them with other known facts.

    Args:
        teacher: The teacher.
        t_init: The generator's first timestep.
        num_steps: K.
        noise: The noise of the later steps.
        known: Further fields of `Facts`.
    """
    tokenizers = [*teacher.tokenizers.values()]
    scheduler = make_scheduler(teacher, t_init, num_steps, noise)
    model = ORIGINALS.get(teacher.original_layout or "")
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
        scheduler=type(scheduler).__name__,
        pipeline=type(teacher.pipeline(teacher.network, scheduler)).__name__,
        pipeline_options=teacher.pipeline_options,
        missing_parts=teacher.missing_parts,
        t_init=t_init,
        alone=bool(model and model.autoencoder is None),
        beside=(files.text_encoder, files.autoencoder) if (files := beside_of(teacher)) else None,
        peft=by_peft(teacher.network),
        global_noise=num_steps > 1 and noise == "fresh" and not teacher.hands_generator_on,
        **known,
    )


def is_hub_id(name: str) -> bool:
    """Return True if a model's name is a Hub id, not a folder."""
    return locate(name).kind == "hub"


def public_name(name: str) -> str:
    """Return a model's name without its local folders."""
    kept = name.startswith((PREFIX, ARCHITECTURE)) or is_hub_id(name)
    return name if kept else Path(name).name


def teacher_license(teacher: str, ask_hub: bool = False) -> str | None:
    """Return the licence in a teacher's model card, or None.

    Args:
        teacher: The teacher's folder or Hub id.
        ask_hub: Download the card of a Hub id, if the Hub can be reached.
    """
    if teacher.startswith(PREFIX):
        return "apache-2.0"  # part of this package
    path = locate(teacher).path / CARD
    try:
        if ask_hub and is_hub_id(teacher):
            path = Path(hf_hub_download(teacher, CARD))
        if not path.is_file():
            return None
        found = ModelCard.load(path, ignore_metadata_errors=True).data.get("license")
    except (OSError, ValueError, yaml.YAMLError):  # the Hub is unreachable, or the card is invalid
        return None
    return found if isinstance(found, str) else None
