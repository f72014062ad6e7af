"""Save a generator in diffusers' layout, so that stock diffusers can sample it."""

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sid_lsg.distributed.sharding import skeleton
from sid_lsg.export.names import complete_tokenizer, name_tokenizers, rename_weights, write_json
from sid_lsg.export.weights import converted, save_weights
from sid_lsg.method.choices import Noise
from sid_lsg.teachers.base import Teacher
from sid_lsg.teachers.precision import backbone

SCHEDULER_CLASS = "SiDScheduler"
SCHEDULER_MODULE = "sid_lsg_scheduler"  # the file's name in a folder's scheduler/

# Keys in which the libraries store the local folder that a part was loaded from.
_LOCAL_KEYS = (
    *("_name_or_path", "name_or_path", "_commit_hash", "is_local", "local_files_only"),
    *("tokenizer_file", "special_tokens_map_file", "vocab_file", "merges_file"),
)
_CONFIGS = ("model_index.json", "config.json", "scheduler_config.json", "tokenizer_config.json")


def save_pipeline(
    teacher: Teacher,
    network: nn.Module,
    folder: str | Path,
    t_init: int,
    num_steps: int = 1,
    dtype: torch.dtype = torch.float32,
    noise: Noise = "fresh",
    weights: Mapping[str, Tensor] | None = None,
) -> None:
    """Save a generator and its teacher's other parts as the family's diffusers pipeline.

    LoRA adapters are merged into the generator's weights.

    A one-step generator needs only classes of diffusers, if diffusers has a scheduler for it.
    Otherwise the source file of `SiDScheduler` is saved too; diffusers runs it under
    `trust_remote_code=True`.

    Args:
        teacher: The teacher.
        network: The generator.
        folder: The folder to write.
        t_init: The first timestep.
        num_steps: K.
        dtype: Dtype of all weights.
        noise: The noise of the later steps.
        weights: The generator's weights, if `network` has only their shapes.

    Raises:
        UsageError: If a weight overflows the dtype.
    """
    folder, scheduler = Path(folder), make_scheduler(teacher, t_init, num_steps, noise)
    pipeline = teacher.pipeline(backbone(network), scheduler)
    for name, part in pipeline.components.items():
        if name == teacher.network_name:
            save_weights(network, folder / name, dtype, weights)
        elif isinstance(part, nn.Module):
            whole = teacher.whole_part(name, part)
            whole = _converted(whole, dtype, is_ours=whole is not part)
            whole.save_pretrained(folder / name, safe_serialization=True)
        elif part is not None:
            part.save_pretrained(folder / name)
    pipeline.save_config(folder)
    _complete(folder, scheduler)
    for name, part in pipeline.components.items():
        rename_weights(part, folder / name)
    for tokenizer in folder.glob("tokenizer*"):
        complete_tokenizer(tokenizer)
    name_tokenizers(folder / "model_index.json")


def save_network(
    teacher: Teacher,
    network: Any,
    folder: str | Path,
    t_init: int,
    num_steps: int = 1,
    dtype: torch.dtype = torch.float32,
    noise: Noise = "fresh",
    weights: Mapping[str, Tensor] | None = None,
) -> None:
    """Save a generator's network and scheduler, for use in a pipeline of the teacher.

    The arguments and errors are those of `save_pipeline`.
    """
    folder, scheduler = Path(folder), make_scheduler(teacher, t_init, num_steps, noise)
    name = teacher.network_name
    save_weights(network, folder / name, dtype, weights)
    save_scheduler(scheduler, folder)


def save_scheduler(scheduler: Any, folder: Path) -> None:
    """Save a generator's scheduler to a folder's `scheduler/`, and complete the folder."""
    scheduler.save_pretrained(folder / "scheduler")
    _complete(folder, scheduler)


def make_scheduler(teacher: Teacher, t_init: int, num_steps: int, noise: Noise = "fresh") -> Any:
    """Make the scheduler of a generator: one of diffusers if any fits, else `SiDScheduler`."""
    if (scheduler := teacher.stock_scheduler(t_init, num_steps, noise)) is not None:
        return scheduler
    from sid_lsg.export.scheduler import SiDScheduler

    return SiDScheduler(num_steps=num_steps, noise=noise, **teacher.scheduler_options(t_init))


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Save a tokenizer without a pipeline."""
    tokenizer.save_pretrained(folder)
    _forget_machine(folder)
    complete_tokenizer(folder)


def _converted(network: Any, dtype: torch.dtype, is_ours: bool) -> Any:
    """Return the network if it has this dtype, else a converted copy on the CPU; convert ours."""
    if network.dtype == dtype:
        return network
    copied = network if is_ours else skeleton(network)
    weights = network.state_dict().items()
    copied.load_state_dict({n: converted(n, w.cpu(), dtype) for n, w in weights}, assign=True)
    return copied


def _complete(folder: Path, scheduler: Any) -> None:
    """Add the source of `SiDScheduler`, name it in the index, and remove local paths."""
    _forget_machine(folder)
    if type(scheduler).__name__ != SCHEDULER_CLASS:
        return
    code = Path(inspect.getfile(type(scheduler))).read_text(encoding="utf-8")
    (folder / "scheduler" / f"{SCHEDULER_MODULE}.py").write_text(code, encoding="utf-8")
    if (index := folder / "model_index.json").is_file():
        parts = json.loads(index.read_text(encoding="utf-8"))
        parts["scheduler"] = [SCHEDULER_MODULE, SCHEDULER_CLASS]
        write_json(index, parts)


def _forget_machine(folder: Path) -> None:
    """Remove local paths from all configurations."""
    for path in [path for name in _CONFIGS for path in folder.rglob(name)]:
        config = json.loads(path.read_text(encoding="utf-8"))
        write_json(path, {k: v for k, v in config.items() if k not in _LOCAL_KEYS})
