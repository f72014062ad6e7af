"""Choose the family of a model and load the model as a teacher.

A family is a subclass of `Teacher` in its own file, with one line in `FAMILIES`. Its module is
imported when one of its models is loaded.
"""

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any

import torch
from torch import nn

from sid_lsg.files.sources import ARCHITECTURE, locate
from sid_lsg.messages.errors import UsageError
from sid_lsg.teachers.base import Teacher
from sid_lsg.teachers.layout import read_index
from sid_lsg.teachers.precision import FLOAT32, Dtypes

FAMILIES = {
    "StableDiffusionPipeline": "sid_lsg.teachers.stable_diffusion.StableDiffusion",
    "StableDiffusionXLPipeline": "sid_lsg.teachers.sdxl.SDXL",
    "StableDiffusionXLImg2ImgPipeline": "sid_lsg.teachers.sdxl.SDXL",
    "StableDiffusionXLInpaintPipeline": "sid_lsg.teachers.sdxl.SDXL",
    "StableDiffusion3Pipeline": "sid_lsg.teachers.sd3.SD3",
    "SanaPipeline": "sid_lsg.teachers.sana.Sana",
    "SanaSprintPipeline": "sid_lsg.teachers.sana.Sana",
    "FluxPipeline": "sid_lsg.teachers.flux.Flux",
    "Flux2KleinPipeline": "sid_lsg.teachers.flux2.Flux2",
    "Flux2Pipeline": "sid_lsg.teachers.flux2.Flux2",
    "QwenImagePipeline": "sid_lsg.teachers.qwen_image.QwenImage",
    "ZImagePipeline": "sid_lsg.teachers.z_image.ZImage",
    "PixArtSigmaPipeline": "sid_lsg.teachers.pixart.PixArtSigma",
    "PixArtAlphaPipeline": "sid_lsg.teachers.pixart.PixArtAlpha",
}
"""Families by the pipeline class in a model's `model_index.json`."""

_DEFAULT = "StableDiffusionPipeline"  # for models with no pipeline class or an unknown one
_NETWORKS = ("unet", "transformer")  # the denoising network's names in diffusers' pipelines


def load(
    model: str,
    revision: str | None = None,
    variant: str | None = None,
    subfolders: Mapping[str, str] | None = None,
    resolution: int | None = None,
    option: str = "model.teacher",
    dtypes: Dtypes = FLOAT32,
) -> Teacher:
    """Load a model as a teacher from safetensors only.

    Args:
        model: A folder in diffusers' layout, a Hub id, `package:...` for a folder inside this
            package, or `architecture:NAME` for an untrained model.
        revision: Branch, tag or commit on the Hub.
        variant: Variant of the weight files, for example "fp16".
        subfolders: Subfolders of the parts that are not in a subfolder with the part's name.
        resolution: Pixels per side of an image; by default the model's.
        option: The option that named the model, for messages.
        dtypes: Dtypes of the weights.

    Raises:
        UsageError: If the model does not exist, or no family can read it.
    """
    if locate(model).kind == "architecture":
        return _build(model, None, resolution, option, dtypes.network or torch.float32)
    family = family_of(model, option, revision)
    return family.from_pretrained(model, revision, variant, subfolders, resolution, option, dtypes)


def outline(
    model: str,
    revision: str | None = None,
    subfolders: Mapping[str, str] | None = None,
    resolution: int | None = None,
    option: str = "model.teacher",
) -> Teacher:
    """Make a teacher on the meta device, where tensors have only shapes, for counting.

    Nothing is downloaded for the Hub ids that an architecture lists. For another Hub id, its
    configuration files are. The arguments and errors are those of `load`.
    """
    if found := architecture_of(model):
        family, name = found
        return family.build(name, "meta", resolution, option=option)
    if locate(model).kind == "architecture":
        return _build(model, "meta", resolution, option)
    family = family_of(model, option, revision)
    return family.outline(model, revision, subfolders, resolution, option)


def family_of(model: str, option: str, revision: str | None = None) -> type[Teacher]:
    """Return the family of a folder or Hub id, by the pipeline class in its index.

    Raises:
        UsageError: If the index cannot be read.
    """
    kind = read_index(locate(model), option, revision).get("_class_name", _DEFAULT)
    return _import(FAMILIES.get(kind, FAMILIES[_DEFAULT]))


def architecture_of(model: str) -> tuple[type[Teacher], str] | None:
    """Return the family and the architecture that list a Hub id; None if none does."""
    if locate(model).kind == "hub":
        for family in _families():
            for name, made in family.architectures.items():
                if model in made.hub_ids:
                    return family, name
    return None


def check_configs(model: str, index: Mapping[str, Any], option: str) -> None:
    """Check the configurations of a model whose pipeline is a family's; accept other models.

    Args:
        model: The model's folder or Hub id.
        index: Its index.
        option: The option that named the model, for messages.

    Raises:
        UsageError: If a network asks for more than its family's pipeline gives it.
    """
    if (kind := index.get("_class_name")) in FAMILIES:
        _import(FAMILIES[kind]).check_configs(model, option=option, index=index)


def channels_problem(components: Mapping[str, Any]) -> str | None:
    """Describe a pipeline's network whose channels are not those of its latents, or None."""
    from diffusers import AutoencoderKL, UNet2DConditionModel

    from sid_lsg.teachers import unet_parts

    unet, vae = (components.get(name) for name in ("unet", "vae"))
    if isinstance(unet, UNet2DConditionModel) and isinstance(vae, AutoencoderKL):
        return unet_parts.channels_problem(unet, vae)
    return None


def network_of(pipeline: Any) -> nn.Module | None:
    """Return the denoising network of any diffusers pipeline, or None."""
    found = (getattr(pipeline, name, None) for name in _NETWORKS)
    return next((network for network in found if network is not None), None)


def _build(
    model: str,
    device: str | None,
    resolution: int | None,
    option: str,
    dtype: torch.dtype = torch.float32,
) -> Teacher:
    name = model.removeprefix(ARCHITECTURE)
    known: list[str] = []
    for family in _families():
        if name in family.architectures:
            return family.build(name, device, resolution, option=option, dtype=dtype)
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
