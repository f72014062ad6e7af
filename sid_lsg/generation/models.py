"""Load models for sampling: generators of this project, teachers and diffusers pipelines."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sid_lsg.checkpoints.opening import find_checkpoint
from sid_lsg.export.exported import Exported, exported, read_exported
from sid_lsg.files.sources import locate
from sid_lsg.files.weights import weights_hash
from sid_lsg.generation import pipelines
from sid_lsg.generation.trained import load_trained
from sid_lsg.messages.checks import check_teacher_guidance, refuse
from sid_lsg.messages.errors import UsageError
from sid_lsg.method.guidance import sampling_evaluations
from sid_lsg.options.choices import Precision, SamplerName
from sid_lsg.options.flow import Flow
from sid_lsg.teachers import families
from sid_lsg.teachers.base import Teacher
from sid_lsg.teachers.checks import check_steps
from sid_lsg.teachers.identity import teacher_hash


@dataclass(frozen=True)
class ImageModel:
    """A loaded model with its sampling settings.

    Attributes:
        sample: (prompts, seeds) -> images [B, 3, H, W] in [-1, 1]; each image depends only on its
            prompt and seed.
        about: The model and its sampling settings, for reports and for continuing a folder.
        evaluations: NFE, network evaluations per image.
        cut_off: Returns the end of a prompt that is too long for the model; "" if none is.
        identity: Returns the hash of all that a teacher's images of prompts depend on; None for
            other models.
    """

    sample: Callable[[Sequence[str], Sequence[int]], Tensor]
    about: dict[str, Any]
    evaluations: int
    cut_off: Callable[[str], str]
    identity: Callable[[Sequence[str]], str] | None = None

    def one_by_one(self) -> "ImageModel":
        """Return a model that samples in batches of one, so that images do not depend on the batch.

        The batch size changes the order of summation in matrix products, and so the last bits.
        """

        def sample(prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
            pairs = zip(prompts, seeds, strict=True)
            return torch.cat([self.sample([prompt], [seed]) for prompt, seed in pairs])

        return replace(self, sample=sample)


AtSettings = Callable[[int | None, float | None], ImageModel]
"""A loaded model, as a function of num_steps and guidance."""


def load_model(
    model: str,
    sampler: SamplerName = "auto",
    num_steps: int | None = None,
    guidance: float | None = None,
    resolution: int | None = None,
    dtype: Precision = "float32",
    device: torch.device | str = "cpu",
    option: str = "model",
) -> ImageModel:
    """Load a model for sampling.

    Args:
        model: A checkpoint of this project or a run directory (its newest checkpoint), a folder in
            diffusers' layout or a Hub id.
        sampler: `generator` samples a generator of this project in one step or K, as in training;
            `ddim` samples a teacher, as training does for comparison; `pipeline` uses the model's
            diffusers pipeline and scheduler; `auto` is `generator` for checkpoints and exported
            folders, else `pipeline`.
        num_steps: Number of steps; by default the training's for a generator, required for other
            models.
        guidance: Guidance scale; not for generators, required for other models; 0 and 1 mean no
            guidance.
        resolution: Pixels per side of an image; by default the model's.
        dtype: Dtype of the networks.
        device: Device to sample on.
        option: The option that named the model, for messages.

    Raises:
        UsageError: If the model cannot be loaded, or not sampled with these settings.
    """
    check_settings(sampler, num_steps, guidance)
    return open_model(model, sampler, resolution, dtype, device, option)(num_steps, guidance)


def check_settings(sampler: SamplerName, num_steps: int | None, guidance: float | None) -> None:
    """Reject settings that no model accepts, before a model is loaded.

    Raises:
        UsageError: For the first such setting.
    """
    if num_steps is not None and num_steps < 1:
        refuse("num_steps", num_steps, "at least 1")
    if sampler == "ddim" and guidance:  # 0 means no guidance in diffusers
        check_teacher_guidance("guidance", guidance)


def open_model(
    model: str,
    sampler: SamplerName = "auto",
    resolution: int | None = None,
    dtype: Precision = "float32",
    device: torch.device | str = "cpu",
    option: str = "model",
) -> AtSettings:
    """Load a model once, for sampling with different settings.

    The arguments are those of `load_model`.

    Returns:
        A function of num_steps and guidance that returns the model with these settings. It raises
        UsageError for settings that the model does not accept.

    Raises:
        UsageError: If the model cannot be loaded.
    """
    if resolution is not None and resolution < 1:
        refuse("resolution", resolution, "at least 1")
    loaded, own = None, None
    if checkpoint := find_checkpoint(model, option):
        if sampler in ("ddim", "pipeline"):
            refuse("sampler", sampler, f"auto or generator for the checkpoint {model!r}")
        found = load_trained(checkpoint, None, resolution, option, teacher_option=option)
        loaded, own = found.teacher, Exported(found.t_init, found.num_steps, found.noise)
    elif sampler in ("generator", "ddim") or (sampler == "auto" and read_exported(locate(model))):
        loaded = families.load(model, resolution=resolution, option=option)
        if own := exported(loaded.scheduler_config):
            Flow(shift=None if own.shift == 1 else own.shift).set_times(loaded.schedule)
    if sampler == "auto":
        sampler = "pipeline" if own is None else "generator"
    about: dict[str, Any] = {"model": model, "sampler": sampler, "dtype": dtype}
    kind, place = getattr(torch, dtype), torch.device(device)
    if sampler == "generator":
        if loaded is None or own is None:
            raise UsageError(
                f"--sampler generator: {model!r} is not a generator that this project trained. "
                "Use --sampler pipeline (or ddim) with --num_steps and --guidance."
            )
        about |= _identity(loaded)
        return partial(_generator, _ready(loaded, place, kind), own, about)
    if sampler == "ddim":
        assert loaded is not None
        about |= _identity(loaded)
        return partial(_teacher, _ready(loaded, place, kind), about)
    pipeline = pipelines.load(model, kind, resolution, option).to(place)
    network = families.network_of(pipeline)
    about |= {"pipeline": type(pipeline).__name__, "scheduler": type(pipeline.scheduler).__name__}
    about |= {"weights_sha256": weights_hash(network.state_dict()) if network else None}
    return partial(_pipeline, pipeline, about | {"resolution": resolution}, option)


def _generator(
    teacher: Teacher,
    own: Exported,
    about: dict[str, Any],
    num_steps: int | None,
    guidance: float | None,
) -> ImageModel:
    if guidance is not None:
        refuse("guidance", guidance, "left out for a generator, which samples without it")
    steps = own.num_steps if num_steps is None else num_steps
    check_settings("generator", steps, None)
    if steps > own.t_init:
        refuse("num_steps", steps, f"at most {own.t_init}, the generator's first timestep")

    def sample(prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        network = teacher.network
        return teacher.decode(
            teacher.generate(network, prompts, seeds, own.t_init, steps, own.noise)
        )

    settings = {"num_steps": steps, "guidance": None, "t_init": own.t_init}
    return ImageModel(sample, about | settings, steps, teacher.cut_off)


def _teacher(
    teacher: Teacher, about: dict[str, Any], num_steps: int | None, guidance: float | None
) -> ImageModel:
    steps, scale = _required(about, num_steps, guidance, len(teacher.schedule))
    check_steps(teacher.scheduler_config, steps, "num_steps")
    return ImageModel(
        lambda prompts, seeds: teacher.sample_reference(prompts, seeds, steps, scale),
        about | {"num_steps": steps, "guidance": scale},
        teacher.sampling_evaluations(steps, scale),
        teacher.cut_off,
        partial(teacher_hash, teacher),
    )


def _pipeline(
    pipeline: Any,
    about: dict[str, Any],
    option: str,
    num_steps: int | None,
    guidance: float | None,
) -> ImageModel:
    timesteps = pipeline.scheduler.config.get("num_train_timesteps")
    steps, scale = _required(about, num_steps, guidance, timesteps)
    check_steps(pipeline.scheduler.config, steps, "num_steps")
    cut = pipelines.cut_off_by(pipeline)
    settings = {"num_steps": steps, "guidance": scale}
    sample = pipelines.sampler(pipeline, steps, scale, about["resolution"], option)
    guided = 1.0 if pipelines.embeds_guidance(pipeline) else scale  # one pass takes the scale
    return ImageModel(sample, about | settings, sampling_evaluations(steps, guided), cut)


def _required(
    about: dict[str, Any], num_steps: int | None, guidance: float | None, timesteps: int | None
) -> tuple[int, float]:
    """Check and return the settings of a model that is not a generator of this project."""
    if num_steps is None or guidance is None:
        raise UsageError(
            f"--num_steps and --guidance are required for {about['model']!r}, which is not a "
            "generator that this project trained. Give for example 25 and 1.5 for a teacher, or 1 "
            "and 0 for another one-step model."
        )
    check_settings(about["sampler"], num_steps, guidance)
    if timesteps and num_steps > timesteps:
        refuse("num_steps", num_steps, f"at most {timesteps}, the timesteps of {about['model']!r}")
    return num_steps, guidance


def _ready(teacher: Teacher, device: torch.device, dtype: torch.dtype) -> Teacher:
    """Set up a teacher's networks as training does: in float32, images are bitwise equal.

    Networks are converted before they move. Layers that transformers keeps in float32, since their
    activations overflow float16, stay so: T5's.
    """
    for part in teacher.children():
        if part is not teacher.schedule:  # stays in float32
            nn.Module.to(part, dtype=dtype)  # diffusers' own gives a warning
    if dtype == torch.float16:
        for part in teacher.text_parts.values():
            for name in getattr(part, "_keep_in_fp32_modules", None) or ():
                for path, module in part.named_modules():
                    if name in path.split("."):
                        module.float()
    teacher.to(device)
    teacher.use_channels_last()
    return teacher


def _identity(teacher: Teacher) -> dict[str, Any]:
    """Return entries that identify the loaded model, independently of its path."""
    return {
        "weights_sha256": weights_hash(teacher.network.state_dict()),
        "latents": list(teacher.latent_shape),
    }
