"""Files that are whole or absent."""

import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from sid_lsg.files.sources import locate
from sid_lsg.messages.errors import UsageError

_ASIDE = ".old.tmp"  # a folder that waits for the new one to take its name


@contextmanager
def replacing(path: Path, over_folder: bool = False) -> Iterator[Path]:
    """Give a temporary name to write to; then rename it to `path`, or delete it after an error.

    Whatever happens, `path` is the old file or folder or the whole new one. A folder cannot be
    replaced at once: between two renamings the old one has the name that `remove_leftovers` knows.

    Args:
        path: The name.
        over_folder: Whether a file may take the place of a folder, which is deleted.

    Raises:
        OSError: If writing fails, in whatever library, or if a file would replace a folder.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        try:
            yield temporary
        except SafetensorError as error:  # which a full disk is to safetensors
            raise OSError(str(error)) from error
        if _is_folder(path) and not (_is_folder(temporary) or over_folder):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if os.path.lexists(path) and (_is_folder(path) or _is_folder(temporary)):
            aside = path.with_name(f".{path.name}{_ASIDE}")
            remove(aside)
            path.rename(aside)
            temporary.rename(path)
            remove(aside)
        else:
            temporary.replace(path)
    finally:
        remove(temporary)


def remove(path: Path) -> None:
    """Delete a file, a link or a folder, if it is there; of a folder, the name goes first."""
    if not _is_folder(path):
        path.unlink(missing_ok=True)
        return
    if not path.name.endswith(".tmp"):
        path = path.rename(path.with_name(f".{path.name}.{os.getpid()}.tmp"))
    shutil.rmtree(path)


def remove_leftovers(folder: Path) -> None:
    """Delete what killed processes have begun to write, in a folder and those inside it."""
    for leftover in [*folder.rglob(".*.tmp")]:
        path = leftover.with_name(leftover.name.removeprefix(".").removesuffix(_ASIDE))
        if leftover.name.endswith(_ASIDE) and not os.path.lexists(path):
            leftover.rename(path)
        else:
            remove(leftover)


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


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


def check_outside(folder: Path, sources: Mapping[str, str]) -> None:
    """Refuse to replace a folder in which something lies that is read.

    Args:
        folder: The folder.
        sources: What is read, by its option; a Hub id is no path.

    Raises:
        UsageError: For the first that lies in it.
    """
    for option, source in sources.items():
        found = locate(source)
        if found.is_local and found.path.resolve().is_relative_to(folder.resolve()):
            raise UsageError(
                f"--output: {str(folder)!r} would be replaced, and --{option} lies in it. Choose "
                "another folder."
            )


def text_hash(texts: Iterable[str]) -> str:
    """Return the SHA-256 of texts, one per line."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode() + b"\n")
    return digest.hexdigest()


def cache_folder() -> Path:
    """Return where files that can be made again are kept: $XDG_CACHE_HOME/sid_lsg."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sid_lsg"
