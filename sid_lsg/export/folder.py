"""A generator as a folder in Stable Diffusion's layout, which stock diffusers samples."""

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers import DDPMScheduler, EulerDiscreteScheduler
from torch import nn

from sid_lsg.export import scheduler as scheduler_file
from sid_lsg.export.scheduler import SiDScheduler
from sid_lsg.messages.errors import UsageError

if TYPE_CHECKING:
    from sid_lsg.teachers.stable_diffusion import StableDiffusion

SCHEDULER_MODULE = "sid_lsg_scheduler"  # the file's name in a folder's scheduler/

# Where the libraries remember from what folder of the trainer's machine something was loaded.
_OF_THE_MACHINE = (
    *("_name_or_path", "name_or_path", "_commit_hash", "is_local", "local_files_only"),
    *("tokenizer_file", "special_tokens_map_file", "vocab_file", "merges_file"),
)
_LEAST_SIGNAL = 2.0**-24  # abar where a schedule ends without any, as diffusers itself puts it
_CONFIGS = ("model_index.json", "config.json", "scheduler_config.json", "tokenizer_config.json")


def save_pipeline(
    teacher: "StableDiffusion",
    network: nn.Module,
    folder: Path,
    t_init: int,
    num_steps: int,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Save a generator with its teacher's other parts as a `StableDiffusionPipeline`.

    In one step it is sampled by classes of diffusers alone. For more steps the file of
    `SiDScheduler` is saved with it, which diffusers runs if `trust_remote_code=True`.

    Raises:
        UsageError: If a weight is too large for the dtype.
    """
    scheduler = make_scheduler(teacher, t_init, num_steps)
    pipeline = teacher.pipeline(network, scheduler)
    for name in ("unet", "vae", "text_encoder"):
        setattr(pipeline, name, _converted(getattr(pipeline, name), dtype))
    pipeline.save_pretrained(folder, safe_serialization=True)
    _complete(folder, scheduler)
    _complete_tokenizer(folder / "tokenizer")


def save_unet(
    teacher: "StableDiffusion",
    network: Any,
    folder: Path,
    t_init: int,
    num_steps: int,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Save a generator's UNet and scheduler, to be put into a pipeline of the teacher.

    Raises:
        UsageError: If a weight is too large for the dtype.
    """
    scheduler = make_scheduler(teacher, t_init, num_steps)
    _converted(network, dtype).save_pretrained(folder / "unet", safe_serialization=True)
    scheduler.save_pretrained(folder / "scheduler")
    _complete(folder, scheduler)


def make_scheduler(
    teacher: "StableDiffusion", t_init: int, num_steps: int
) -> EulerDiscreteScheduler | SiDScheduler:
    """Make the scheduler of a generator.

    Its input is sigma_t z at t = t_init and its image is the x_0-estimate there. An Euler step over
    the first t_init + 1 betas, from the last of them to zero noise, is just that. No scheduler of
    diffusers adds fresh noise to x_0 at the timesteps of K steps.
    """
    betas = DDPMScheduler.from_config(teacher.scheduler_config).betas[: t_init + 1]
    if num_steps == 1 and betas[-1] == 1:  # zero terminal SNR, where an Euler step is infinite
        betas[-1] = 1 - _LEAST_SIGNAL / (1 - betas[:-1]).prod()
    common = {
        "num_train_timesteps": t_init + 1,
        "trained_betas": betas.tolist(),
        "prediction_type": teacher.schedule.prediction_type,
    }
    if num_steps > 1:
        return SiDScheduler(num_steps=num_steps, **common)
    return EulerDiscreteScheduler(
        timestep_spacing="trailing",
        steps_offset=1,  # unused by this spacing; diffusers warns about any other value
        **common,
    )


def t_init_of(scheduler_config: Mapping[str, Any]) -> int | None:
    """Return the generator's timestep, if it is the configuration of a scheduler made here."""
    betas = scheduler_config.get("trained_betas")
    trailing = scheduler_config.get("timestep_spacing") == "trailing"
    made_here = betas is not None and (trailing or "num_steps" in scheduler_config)
    return len(betas) - 1 if betas is not None and made_here else None


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Save a tokenizer alone."""
    tokenizer.save_pretrained(folder)
    _forget_machine(folder)
    _complete_tokenizer(folder)


def _complete_tokenizer(folder: Path) -> None:
    """Forget how a tokenizer was last called, and write vocab.json and merges.txt.

    Each call says anew how to pad and cut; the same generator's folders would differ. Releases of
    transformers before 5, and other programs, read the other two files.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        return
    content = json.loads(path.read_text(encoding="utf-8"))
    _write_json(path, content | {"truncation": None, "padding": None})
    if (folder / "vocab.json").exists():
        return
    model = content["model"]
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    vocabulary = json.dumps(model["vocab"], ensure_ascii=False)
    (folder / "vocab.json").write_text(vocabulary, encoding="utf-8")
    lines = ["#version: 0.2", *merges, ""]
    (folder / "merges.txt").write_text("\n".join(lines), encoding="utf-8")


def _converted(network: Any, dtype: torch.dtype) -> Any:
    """Return a network whose weights are of a type: itself, or a copy."""
    if network.dtype == dtype:
        return network
    # Not the network's own `to`: that of diffusers warns without a cause.
    converted = nn.Module.to(copy.deepcopy(network), dtype)
    for name, weight in converted.state_dict().items():
        if not weight.isfinite().all():
            raise UsageError(
                f"--dtype: the weight {name!r} is too large for {str(dtype).split('.')[-1]}. Use "
                "bfloat16 or float32."
            )
    return converted


def _complete(folder: Path, scheduler: Any) -> None:
    """Add a scheduler's own file and name it in the index; forget the trainer's machine."""
    _forget_machine(folder)
    if not isinstance(scheduler, SiDScheduler):
        return
    code = Path(scheduler_file.__file__).read_text(encoding="utf-8")
    (folder / "scheduler" / f"{SCHEDULER_MODULE}.py").write_text(code, encoding="utf-8")
    if (index := folder / "model_index.json").is_file():
        parts = json.loads(index.read_text(encoding="utf-8"))
        parts["scheduler"] = [SCHEDULER_MODULE, SiDScheduler.__name__]
        _write_json(index, parts)


def _forget_machine(folder: Path) -> None:
    """Take the trainer's local folders out of all configurations."""
    for path in [path for name in _CONFIGS for path in folder.rglob(name)]:
        config = json.loads(path.read_text(encoding="utf-8"))
        _write_json(path, {k: v for k, v in config.items() if k not in _OF_THE_MACHINE})


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
