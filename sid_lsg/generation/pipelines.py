"""Load and sample any diffusers pipeline that makes images from texts."""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from sid_lsg.files.loading import check_finite, explained, load_network
from sid_lsg.files.sources import Source, located
from sid_lsg.messages.checks import refuse
from sid_lsg.messages.errors import UsageError
from sid_lsg.teachers import families
from sid_lsg.teachers.layout import INDEX, read_index
from sid_lsg.teachers.text import cut_off
from sid_lsg.teachers.tokenizers import tokenizers_problem

_REMEDY = (
    "Give a folder in diffusers' layout with safetensors weights, or a Hub id that this machine "
    "can reach."
)
_MULTIPLE = 8  # pixels; diffusers' pipelines require it for every VAE
_LIBRARIES = ("diffusers", "transformers")
# Arguments of pipelines that change an image, instead of making one.
_GIVEN = {"image", "mask_image", "init_image", "source_image", "control_image", "video"}


def load(model: str, dtype: torch.dtype, resolution: int | None, option: str) -> Any:
    """Load any diffusers pipeline, from safetensors only.

    Args:
        model: A folder in diffusers' layout or a Hub id.
        dtype: Dtype of the networks.
        resolution: Pixels per side of an image; by default the model's.
        option: The option that named the model, for messages.

    Raises:
        UsageError: If the pipeline cannot be loaded, is not text-to-image, or does not accept the
            resolution.
    """
    from diffusers import DiffusionPipeline

    what = f"--{option}: could not load a diffusers pipeline from {model!r}"
    source = located(model, option, "Give a folder in diffusers' layout, or a Hub id.")
    if source.kind == "file":
        raise UsageError(f"{what} (it is a file). {_REMEDY}")
    index = read_index(source, option)
    check_text_to_image(str(index.get("_class_name")), option)
    families.check_configs(model, index, option)
    parts = _missing_parts(index) | _load_parts(source, index, dtype, option)
    with explained(what, _REMEDY):
        pipeline = DiffusionPipeline.from_pretrained(
            source.location,
            torch_dtype=dtype,
            use_safetensors=True,
            low_cpu_mem_usage=False,
            **parts,
        )
        for name, part in pipeline.components.items():
            if isinstance(part, nn.Module) and name not in parts:
                check_finite(part)
    parts = pipeline.components
    if problem := tokenizers_problem(parts) or families.channels_problem(parts):
        raise UsageError(f"{what} ({problem}). Give a complete text-to-image model.")
    multiple = math.lcm(_MULTIPLE, getattr(pipeline, "vae_scale_factor", 1))
    if resolution is not None and resolution % multiple:
        refuse("resolution", resolution, f"a multiple of {multiple} for {model!r}")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _missing_parts(index: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parts that a model lacks and its pipeline must be given, as arguments."""
    import diffusers

    kind = getattr(diffusers, str(index.get("_class_name")), diffusers.DiffusionPipeline)
    lacks = [name for name, value in index.items() if isinstance(value, list) and None in value]
    return {name: None for name in lacks if name not in kind._optional_components}


def check_text_to_image(name: str, option: str) -> None:
    """Reject pipelines of diffusers that need more than a prompt.

    Args:
        name: The pipeline's class; an unknown one is accepted.
        option: The option that named the model, for messages.

    Raises:
        UsageError: If the pipeline is not text-to-image.
    """
    import diffusers
    from diffusers.pipelines import auto_pipeline

    kind = getattr(diffusers, name, None)
    known = auto_pipeline.AUTO_TEXT2IMAGE_PIPELINES_MAPPING.values()
    if not callable(kind) or name in {one.__name__ for one in known}:
        return
    arguments = set(inspect.signature(kind.__call__).parameters)
    if "prompt" in arguments and not arguments & _GIVEN:
        return
    needs = sorted(arguments & _GIVEN)
    why = f"it needs {needs[0]}, beside a prompt" if needs else "it takes no prompt"
    raise UsageError(
        f"--{option}: the model's pipeline, {name}, is not text-to-image: {why}. Give a "
        "text-to-image model."
    )


def sampler(
    pipeline: Any, num_steps: int, guidance: float, resolution: int | None, option: str
) -> Callable[[Sequence[str], Sequence[int]], Tensor]:
    """Return a function from prompts and seeds to images [B, 3, H, W] in [-1, 1].

    The function raises UsageError if the pipeline's own checks reject the settings, or if its
    parts do not fit together.
    """
    size = _size(pipeline, resolution)

    @torch.no_grad()
    def sample(prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        try:
            images = pipeline(
                prompt=list(prompts),
                num_inference_steps=num_steps,
                **guidance_arguments(pipeline, guidance, len(prompts)),
                generator=[torch.Generator().manual_seed(seed) for seed in seeds],
                output_type="pt",
                **size,
            ).images
        except torch.OutOfMemoryError:
            raise
        except ValueError as error:
            raise UsageError(
                f"--resolution, --num_steps, --guidance: {type(pipeline).__name__} rejects these "
                f"values ({error}). Give others."
            ) from error
        except (RuntimeError, TypeError, AttributeError, LookupError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UsageError(
                f"--{option}: {type(pipeline).__name__} cannot run this model ({reason}). Its "
                "parts may not fit together: give a text-to-image model that diffusers can sample."
            ) from error
        return images.float() * 2 - 1

    return sample


def guidance_arguments(pipeline: Any, scale: float, prompts: int) -> dict[str, Any]:
    """Return a guidance scale as arguments of a pipeline, for which 0 and 1 mean none.

    Z-Image's pipeline counts from 0. Qwen-Image's, and FLUX.1's with a network that takes no
    guidance scale, guide by a negative prompt.
    """
    if type(pipeline).__name__ == "ZImagePipeline":
        return {"guidance_scale": max(scale - 1, 0.0)}
    if embeds_guidance(pipeline):  # FLUX.1's was trained with scales from 1
        return {"guidance_scale": max(scale, 1.0)}
    if "true_cfg_scale" not in inspect.signature(pipeline.__call__).parameters:
        return {"guidance_scale": scale}
    return {"true_cfg_scale": scale, "negative_prompt": [""] * prompts} if scale > 1 else {}


def embeds_guidance(pipeline: Any) -> bool:
    """Return whether the network of a pipeline takes the guidance scale as an input."""
    config = getattr(families.network_of(pipeline), "config", {})
    return bool(config.get("guidance_embeds"))


def cut_off_by(pipeline: Any) -> Callable[[str], str]:
    """Return a function from a prompt to its end that no text encoder of a pipeline reads.

    CLIP reads as many tokens as its tokenizer says, other encoders as many as the pipeline does by
    default.
    """
    usual = inspect.signature(pipeline.__call__).parameters.get("max_sequence_length")
    most = usual.default if usual and isinstance(usual.default, int) else None
    readers = [
        partial(cut_off, part, length=None if type(part).__name__.startswith("CLIP") else most)
        for name, part in pipeline.components.items()
        if name.startswith("tokenizer") and getattr(part, "is_fast", False)
    ]
    return lambda prompt: min((read(prompt) for read in readers), key=len, default="")


def _size(pipeline: Any, resolution: int | None) -> dict[str, Any]:
    """Return the size of an image as arguments of a pipeline, for exactly the size asked for.

    SANA's pipeline always has 1024 pixels by default; others have their network's size.
    """
    arguments = inspect.signature(pipeline.__call__).parameters
    network = families.network_of(pipeline)
    side = getattr(getattr(network, "config", None), "sample_size", None)
    fixed = "height" in arguments and arguments["height"].default is not None
    if resolution is None and fixed and isinstance(side, int):
        resolution = side * pipeline.vae_scale_factor
    size: dict[str, Any] = {}
    if resolution is not None:
        size = {"height": resolution, "width": resolution}
    if "use_resolution_binning" in arguments:  # resizes to one of a table of sizes
        size["use_resolution_binning"] = False
    return size


def _load_parts(
    source: Source, index: Mapping[str, Any], dtype: torch.dtype, option: str
) -> dict[str, Any]:
    """Load the parts of diffusers and transformers that an index names.

    The pipeline itself would fill missing weights with random numbers, and not name a part that it
    cannot load.

    Raises:
        UsageError: If a part that the index names is missing or cannot be loaded.
    """
    parts = {}
    for name, entry in index.items():
        if not isinstance(entry, list) or len(entry) != 2 or None in entry:
            continue
        with explained(f"--{option}: could not load the {name} of {source.name!r}", _REMEDY):
            if source.kind == "folder" and not (source.path / name).is_dir():
                raise ValueError(f"{INDEX} names it, and there is no subfolder {name!r}")
            library, kind = entry
            part: Any = getattr(import_module(library), kind) if library in _LIBRARIES else None
            if not hasattr(part, "from_pretrained"):
                continue  # the pipeline's own code
            if nn.Module not in inspect.getmro(part):
                parts[name] = part.from_pretrained(source.location, subfolder=name)
                continue
            options: dict[str, Any] = {"dtype": dtype}
            if library == "diffusers":
                options = {"torch_dtype": dtype, "low_cpu_mem_usage": False}
            parts[name] = load_network(part, source.location, subfolder=name, **options)
    return parts
