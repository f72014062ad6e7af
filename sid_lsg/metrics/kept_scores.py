"""Numbers of a teacher that are computed once and kept for other runs on this machine."""

import fcntl
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from sid_lsg import __version__
from sid_lsg.distributed.processes import gather, process
from sid_lsg.files.replacing import cache_folder, replacing, text_hash
from sid_lsg.metrics.evaluator import Evaluator
from sid_lsg.metrics.report import PACKAGES, scored_by

LIMIT = 1000  # files of about 2 KiB; the least recently used ones are removed

_PACKAGE = Path(__file__).parents[1]
_CODE = ("images", "method", "metrics", "networks", "teachers")  # what the numbers depend on

SECONDS = "seconds_per_image"

Numbers = dict[str, float]


def sampled(
    teacher: str,
    prompts: Sequence[str],
    num_steps: int,
    guidance: float,
    device: torch.device,
    precision: str,
) -> dict[str, Any]:
    """Describe sampled images: what their pixels depend on.

    Args:
        teacher: The teacher's hash (`teacher_hash`).
        prompts: The prompt of each image; image i has seed i.
        num_steps: Sampling steps.
        guidance: Guidance scale.
        device: Device that computes them.
        precision: Lightning's name of the precision.
    """
    cuda = device.type == "cuda"
    return {
        "teacher_sha256": teacher,
        "prompts_sha256": text_hash(prompts),
        "num_images": len(prompts),
        "num_steps": num_steps,
        "guidance": float(guidance),
        "device": torch.cuda.get_device_name(device) if cuda else device.type,
        "precision": precision,
        "tf32": cuda and torch.backends.cuda.matmul.allow_tf32,
        "versions": {name: version(name) for name in PACKAGES} | {"sid_lsg": __version__},
        "code_sha256": _code(),
    }


def scored(images: Mapping[str, Any], evaluator: Evaluator) -> dict[str, Any]:
    """Describe the scores of sampled images.

    Args:
        images: The description of the images (`sampled`).
        evaluator: What scores them.
    """
    reference = evaluator.reference
    features = None if reference is None else reference.features.detach().cpu().contiguous()
    exact = None if features is None else hashlib.sha256(features.numpy().data).hexdigest()
    return {**images, **scored_by(evaluator), "reference_sha256": exact}


def kept(about: Mapping[str, Any], compute: Callable[[], Numbers], what: str) -> Numbers:
    """Return the numbers of an earlier run with the same description, or compute and keep them.

    All processes call this together. Several runs on a machine compute the same numbers once: the
    others wait.

    Args:
        about: All that the numbers depend on.
        compute: Computes them; all processes call it together.
        what: What they are, for the message.
    """
    rank, world = process()
    path = _path(about)
    with _alone(path) if world == 1 else ExitStack():
        found = gather([_read(path) if rank == 0 else None])[0]
        if found is not None:
            rank_zero_info(f"{what} were computed before, and read from {path}.")
            return found
        computed = compute()
        if rank == 0:
            keep(about, computed)
        return computed


def keep(about: Mapping[str, Any], numbers: Numbers) -> None:
    """Keep numbers for other runs, unless one is not finite. A full disk is no error."""
    if not all(map(math.isfinite, numbers.values())):
        return
    path = _path(about)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            content = {"numbers": numbers, "about": about}
            temporary.write_text(json.dumps(content, indent=2, default=str) + "\n")
        files = sorted(path.parent.glob("*.json"), key=lambda file: file.stat().st_mtime)
        for old in files[:-LIMIT]:
            old.unlink(missing_ok=True)
    except OSError as error:
        rank_zero_warn(f"Could not keep the teacher's numbers in {path} ({error}).")


def _path(about: Mapping[str, Any]) -> Path:
    text = json.dumps(about, sort_keys=True, default=str)
    return cache_folder() / "teachers" / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"


def _read(path: Path) -> Numbers | None:
    """Return kept numbers; None if there are none, or the file is damaged."""
    try:
        numbers = json.loads(path.read_text())["numbers"]
        found = {str(name): float(value) for name, value in numbers.items()}
        path.touch()  # used
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    return found


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Let one process at a time compute what a file keeps; go ahead where locks do not work."""
    lock = path.with_suffix(".lock")
    with ExitStack() as stack:
        with suppress(OSError):
            lock.parent.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(lock.open("a"))
            stack.callback(lock.unlink, missing_ok=True)
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                rank_zero_info(f"Waiting for another run that computes the same ({lock}).")
                fcntl.lockf(file, fcntl.LOCK_EX)
        yield


@cache
def _code() -> str:
    """Return the SHA-256 of this package's code that samples and scores."""
    files = [path for wing in _CODE for path in sorted((_PACKAGE / wing).glob("*.py"))]
    return text_hash(path.read_text(encoding="utf-8") for path in files)
