"""Files that are whole or absent, and the fingerprints that tell what was loaded."""

import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from sid_lsg.errors import UsageError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary name to write to; then rename it to `path`, or delete it after an error.

    Whatever happens, `path` is the old file or the whole new one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Delete what killed processes have begun to write, in a folder and those inside it."""
    for leftover in folder.rglob(".*.tmp"):
        leftover.unlink(missing_ok=True)


def check_writable(folder: Path, option: str) -> None:
    """Make a folder, if it is not there, and try to write into it.

    Raises:
        UsageError: If that cannot be done.
    """
    with writing(folder, option):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass


@contextmanager
def writing(folder: Path, option: str) -> Iterator[None]:
    """Turn what goes wrong in writing to a folder into one message.

    Raises:
        UsageError: In place of an OSError.
    """
    try:
        yield
    except OSError as error:
        raise UsageError(
            f"--{option}: cannot write to {str(folder)!r} ({error.strerror or error}). What was "
            "finished before is kept. Make room, or choose another folder."
        ) from error


def text_hash(texts: Iterable[str]) -> str:
    """Return the SHA-256 of texts, one per line."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode() + b"\n")
    return digest.hexdigest()


def weights_hash(weights: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of tensors, with their names, types and shapes, in the names' order."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def cache_folder() -> Path:
    """Return where files that can be made again are kept: $XDG_CACHE_HOME/sid_lsg."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sid_lsg"
