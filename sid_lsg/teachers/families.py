"""All families of teachers: which one a model belongs to, and how to open it.

A family is a `Teacher` in a file of its own and one line of `FAMILIES`. Its module is imported when
one of its models is opened.
"""

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any

from torch import nn

from sid_lsg.files.sources import ARCHITECTURE, locate
from sid_lsg.messages.errors import UsageError
from sid_lsg.teachers.base import Teacher
from sid_lsg.teachers.layout import read_index

FAMILIES = {
    "StableDiffusionPipeline": "sid_lsg.teachers.stable_diffusion.StableDiffusion",
}
"""The pipeline class in a model's `model_index.json`, and the family that reads the model."""

_DEFAULT = "StableDiffusionPipeline"  # of models that name no pipeline, or one that is unknown
_NETWORKS = ("unet", "transformer")  # what diffusers' pipelines call the denoising network


def load(
    model: str,
    revision: str | None = None,
    variant: str | None = None,
    subfolders: Mapping[str, str] | None = None,
    resolution: int | None = None,
    option: str = "model.teacher",
) -> Teacher:
    """Load a model as a teacher, in float32, from safetensors alone.

    Args:
        model: A folder in diffusers' layout, a Hub id, `package:...` for a folder inside this
            package, or `architecture:NAME` for an untrained model.
        revision: Branch, tag or commit on the Hub.
        variant: Which weight files, e.g. "fp16".
        subfolders: Where a part does not lie in the subfolder of its own name.
        resolution: Pixels of an image's side; by default what the model was trained for.
        option: The option that named the model, for messages.

    Raises:
        UsageError: If there is no such model, or it is of no known family.
    """
    if locate(model).kind == "architecture":
        return _build(model, None, resolution, option)
    family = family_of(model, option, revision)
    return family.from_pretrained(model, revision, variant, subfolders, resolution, option)


def outline(
    model: str,
    revision: str | None = None,
    subfolders: Mapping[str, str] | None = None,
    resolution: int | None = None,
    option: str = "model.teacher",
) -> Teacher:
    """Make a teacher that has shapes and no numbers, on the meta device, for counting.

    Nothing is downloaded for the Hub ids that an architecture lists; for another Hub id, its
    configuration files. The arguments and errors are those of `load`.
    """
    source = locate(model)
    if source.kind == "hub":
        for family in _families():
            for name, made in family.architectures.items():
                if model in made.hub_ids:
                    return family.build(name, "meta", resolution, option=option)
    if source.kind == "architecture":
        return _build(model, "meta", resolution, option)
    family = family_of(model, option, revision)
    return family.outline(model, revision, subfolders, resolution, option)


def family_of(model: str, option: str, revision: str | None = None) -> type[Teacher]:
    """Choose the family of a folder or Hub id by the pipeline that its index names.

    Raises:
        UsageError: If the index cannot be read.
    """
    kind = read_index(locate(model), option, revision).get("_class_name", _DEFAULT)
    return _import(FAMILIES.get(kind, FAMILIES[_DEFAULT]))


def network_of(pipeline: Any) -> nn.Module | None:
    """Return the denoising network of any pipeline of diffusers, if it has one."""
    found = (getattr(pipeline, name, None) for name in _NETWORKS)
    return next((network for network in found if network is not None), None)


def _build(model: str, device: str | None, resolution: int | None, option: str) -> Teacher:
    name = model.removeprefix(ARCHITECTURE)
    known: list[str] = []
    for family in _families():
        if name in family.architectures:
            return family.build(name, device, resolution, option=option)
        known += family.architectures
    raise UsageError(
        f"--{option}: there is no architecture {name!r}. Choose one of {', '.join(known)}."
    )


def _families() -> Iterator[type[Teacher]]:
    return (_import(path) for path in dict.fromkeys(FAMILIES.values()))


def _import(path: str) -> type[Teacher]:
    module, _, name = path.rpartition(".")
    family: type[Teacher] = getattr(import_module(module), name)
    return family
