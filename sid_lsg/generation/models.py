"""Models to take images from: our generators, their teachers, any diffusers pipeline."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sid_lsg.checkpoints.opening import find_checkpoint
from sid_lsg.export.exported import exported, read_exported
from sid_lsg.files.sources import locate
from sid_lsg.files.weights import weights_hash
from sid_lsg.generation import pipelines
from sid_lsg.generation.trained import load_trained
from sid_lsg.messages.checks import check_teacher_guidance, refuse
from sid_lsg.messages.errors import UsageError
from sid_lsg.method.guidance import sampling_evaluations
from sid_lsg.options.choices import Precision, SamplerName
from sid_lsg.teachers import families
from sid_lsg.teachers.base import Teacher
from sid_lsg.teachers.text import cut_off


@dataclass(frozen=True)
class ImageModel:
    """A model with all that decides what its images are.

    Attributes:
        sample: (prompts, seeds) -> images [B, 3, H, W] in [-1, 1]; an image depends on its own
            prompt and seed alone.
        about: What was loaded and how it is sampled, for reports and for continuing.
        evaluations: Of the network, for an image.
        cut_off: What of a prompt the model does not see, since it is too long; "" for nothing.
    """

    sample: Callable[[Sequence[str], Sequence[int]], Tensor]
    about: dict[str, Any]
    evaluations: int
    cut_off: Callable[[str], str]

    def one_by_one(self) -> "ImageModel":
        """Send each image through the networks alone, so that not one bit depends on the others.

        Matrix products add up in another order when a batch has another size.
        """

        def sample(prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
            pairs = zip(prompts, seeds, strict=True)
            return torch.cat([self.sample([prompt], [seed]) for prompt, seed in pairs])

        return replace(self, sample=sample)


AtSettings = Callable[[int | None, float | None], ImageModel]
"""A loaded model: what samples it in a number of steps at a guidance scale."""


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
    """Load a model to be sampled.

    Args:
        model: A checkpoint of this project or a run directory (its newest checkpoint), a folder in
            diffusers' layout or a Hub id.
        sampler: `generator` samples what this project trained as the training does, in one step or
            K; `ddim` samples a teacher as the training's comparison does;
            `pipeline` is the model's own diffusers pipeline and scheduler; `auto` is the first for
            checkpoints and exported folders, else the last.
        num_steps: Steps; the training's by default for a generator, and to be given for the others.
        guidance: Guidance scale, to be given for all but generators, which have none; 0 and 1 mean
            no guidance.
        resolution: Side of the images in pixels; by default the model's.
        dtype: Of the networks.
        device: Where to sample.
        option: The option that named the model, for messages.

    Raises:
        UsageError: If the model cannot be loaded or cannot be sampled so.
    """
    check_settings(sampler, num_steps, guidance)
    return open_model(model, sampler, resolution, dtype, device, option)(num_steps, guidance)


def check_settings(sampler: SamplerName, num_steps: int | None, guidance: float | None) -> None:
    """Refuse settings that no model takes, before one is loaded.

    Raises:
        UsageError: For the first of them.
    """
    if num_steps is not None and num_steps < 1:
        refuse("num_steps", num_steps, "at least 1")
    if sampler == "ddim" and guidance:  # 0 is how diffusers says that there is none
        check_teacher_guidance("guidance", guidance)


def open_model(
    model: str,
    sampler: SamplerName = "auto",
    resolution: int | None = None,
    dtype: Precision = "float32",
    device: torch.device | str = "cpu",
    option: str = "model",
) -> AtSettings:
    """Load a model once, to be sampled at any settings.

    The arguments are those of `load_model`. The result gives, of its num_steps and guidance, the
    model at these settings, and raises UsageError for settings that the model cannot take.

    Raises:
        UsageError: If the model cannot be loaded.
    """
    if resolution is not None and resolution < 1:
        refuse("resolution", resolution, "at least 1")
    loaded, t_init, trained_steps = None, None, 1
    if checkpoint := find_checkpoint(model, option):
        if sampler in ("ddim", "pipeline"):
            refuse("sampler", sampler, f"auto or generator for the checkpoint {model!r}")
        loaded, t_init, trained_steps, *_ = load_trained(
            checkpoint, None, resolution, option, teacher_option=option
        )
    elif sampler != "pipeline":
        try:
            loaded = families.load(model, resolution=resolution, option=option)
            if own := exported(loaded.scheduler_config):
                t_init, trained_steps = own
        except UsageError:
            if sampler != "auto" or read_exported(locate(model)):
                raise
    if sampler == "auto":
        sampler = "pipeline" if t_init is None else "generator"
    about: dict[str, Any] = {"model": model, "sampler": sampler, "dtype": dtype}
    kind, place = getattr(torch, dtype), torch.device(device)
    if sampler == "generator":
        if loaded is None or t_init is None:
            raise UsageError(
                f"--sampler generator: {model!r} is not a generator that this project trained. "
                "Use --sampler pipeline (or ddim) with --num_steps and --guidance."
            )
        ready = _ready(loaded, place, kind)
        return partial(_generator, ready, t_init, trained_steps, about | _identity(ready))
    if sampler == "ddim":
        assert loaded is not None
        ready = _ready(loaded, place, kind)
        return partial(_teacher, ready, about | _identity(ready))
    pipeline = pipelines.load(model, kind, resolution, option).to(place)
    network = families.network_of(pipeline)
    about |= {"pipeline": type(pipeline).__name__, "scheduler": type(pipeline.scheduler).__name__}
    about |= {"weights_sha256": weights_hash(network.state_dict()) if network else None}
    return partial(_pipeline, pipeline, about | {"resolution": resolution})


def _generator(
    teacher: Teacher,
    t_init: int,
    trained_steps: int,
    about: dict[str, Any],
    num_steps: int | None,
    guidance: float | None,
) -> ImageModel:
    if guidance is not None:
        refuse("guidance", guidance, "left out for a generator, which samples without it")
    steps = trained_steps if num_steps is None else num_steps
    check_settings("generator", steps, None)
    if steps > t_init:
        refuse("num_steps", steps, f"at most {t_init}, the generator's timestep")

    def sample(prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        latents = teacher.generate(teacher.network, prompts, seeds, t_init, steps)
        return teacher.decode(latents)

    settings = {"num_steps": steps, "guidance": None, "t_init": t_init}
    return ImageModel(sample, about | settings, steps, teacher.cut_off)


def _teacher(
    teacher: Teacher, about: dict[str, Any], num_steps: int | None, guidance: float | None
) -> ImageModel:
    steps, scale = _given(about, num_steps, guidance, len(teacher.schedule))
    return ImageModel(
        lambda prompts, seeds: teacher.sample_reference(prompts, seeds, steps, scale),
        about | {"num_steps": steps, "guidance": scale},
        sampling_evaluations(steps, scale),
        teacher.cut_off,
    )


def _pipeline(
    pipeline: Any, about: dict[str, Any], num_steps: int | None, guidance: float | None
) -> ImageModel:
    timesteps = pipeline.scheduler.config.get("num_train_timesteps")
    steps, scale = _given(about, num_steps, guidance, timesteps)
    tokenizer = getattr(pipeline, "tokenizer", None)
    cut = partial(cut_off, tokenizer) if tokenizer else lambda prompt: ""
    settings = {"num_steps": steps, "guidance": scale}
    sample = pipelines.sampler(pipeline, steps, scale, about["resolution"])
    return ImageModel(sample, about | settings, sampling_evaluations(steps, scale), cut)


def _given(
    about: dict[str, Any], num_steps: int | None, guidance: float | None, timesteps: int | None
) -> tuple[int, float]:
    """Return the settings of a model that has none of its own, and as many timesteps at most."""
    if num_steps is None or guidance is None:
        raise UsageError(
            f"--num_steps and --guidance are to be given for {about['model']!r}, which is not a "
            "generator that this project trained: a teacher's, such as 25 and 1.5, or those of the "
            "one-step model that it is, such as 1 and 0."
        )
    check_settings(about["sampler"], num_steps, guidance)
    if timesteps and num_steps > timesteps:
        refuse("num_steps", num_steps, f"at most {timesteps}, the timesteps of {about['model']!r}")
    return num_steps, guidance


def _ready(teacher: Teacher, device: torch.device, dtype: torch.dtype) -> Teacher:
    """Set up a teacher's networks as the training does, so that every bit agrees in float32."""
    teacher.to(device)
    teacher.use_channels_last()
    for part in teacher.children():
        if part is not teacher.schedule:  # which stays in float32
            part.to(dtype=dtype)
    return teacher


def _identity(teacher: Teacher) -> dict[str, Any]:
    """Describe what was loaded, independently of its path."""
    return {
        "weights_sha256": weights_hash(teacher.network.state_dict()),
        "latents": list(teacher.latent_shape),
    }
