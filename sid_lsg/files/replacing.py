"""Replace files and folders atomically."""

import errno
import hashlib
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from sid_lsg.files.run_files import CONFIG
from sid_lsg.files.sources import locate
from sid_lsg.messages.errors import UsageError

_ASIDE = ".old.tmp"  # the suffix of a folder while it is replaced
_LEFTOVER = re.compile(r"\..+\.([0-9a-f]+|old|shards)\.tmp")


def link(source: str | Path, target: str | Path) -> None:
    """Give a file a second name, which takes no space; copy it where there are no hard links.

    Raises:
        OSError: If the copy fails.
    """
    try:
        os.link(source, target)
    except OSError:
        shutil.copy(source, target)


@contextmanager
def replacing(path: Path, over_folder: bool = False) -> Iterator[Path]:
    """Yield a temporary path; rename it to `path` at the end, or delete it after an error.

    `path` is always the old file or folder, or the complete new one. Replacing a folder takes two
    renamings; `remove_leftovers` restores the old folder if the process is killed between them.

    Args:
        path: The path of the file or folder.
        over_folder: Allow a file to replace a folder, which is deleted.

    Raises:
        OSError: If writing fails, also in safetensors, or a file would replace a folder.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(path)
    try:
        try:
            yield temporary
        except SafetensorError as error:  # safetensors' error for a full disk
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
    """Delete a file, link or folder, if it exists; a folder is renamed first."""
    if not _is_folder(path):
        path.unlink(missing_ok=True)
        return
    if not path.name.endswith(".tmp"):
        path = path.rename(_beside(path))
    shutil.rmtree(path)


def remove_leftovers(folder: Path) -> None:
    """Delete the incomplete files of killed processes in a folder and its subfolders.

    Subfolders of other runs, which may be writing, are left alone.
    """
    for leftover in [*_leftovers(folder)]:
        path = leftover.with_name(leftover.name.removeprefix(".").removesuffix(_ASIDE))
        if leftover.name.endswith(_ASIDE) and not os.path.lexists(path):
            leftover.rename(path)
        else:
            remove(leftover)


def _leftovers(folder: Path) -> Iterator[Path]:
    for parent, folders, files in os.walk(folder):
        where = Path(parent)
        if where != folder and (where / CONFIG).exists():
            folders.clear()
            continue
        yield from (where / name for name in (*folders, *files) if _LEFTOVER.fullmatch(name))


def _beside(path: Path) -> Path:
    """Return a name that no other process takes, also on machines that share the file system."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def check_writable(folder: Path, option: str) -> None:
    """Create a folder if it does not exist, and check that it can be written to.

    Raises:
        UsageError: If the folder cannot be created or written to.
    """
    with writing(folder, option):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass


@contextmanager
def writing(folder: Path, option: str) -> Iterator[None]:
    """Turn an OSError while writing to a folder into one message.

    Raises:
        UsageError: Instead of an OSError.
    """
    try:
        yield
    except OSError as error:
        raise UsageError(
            f"--{option}: cannot write to {str(folder)!r} ({error.strerror or error}). Files "
            "that are already complete are kept. Make room, or choose another folder."
        ) from error


def check_outside(folder: Path, sources: Mapping[str, str]) -> None:
    """Reject an output folder that contains an input.

    Args:
        folder: The folder that would be replaced.
        sources: The inputs by their options: paths, or Hub ids, which are ignored.

    Raises:
        UsageError: For the first input inside the folder.
    """
    for option, source in sources.items():
        found = locate(source)
        if found.is_local and found.path.resolve().is_relative_to(folder.resolve()):
            raise UsageError(
                f"--output: {str(folder)!r} would be replaced, but it contains --{option}. Choose "
                "another folder."
            )


def text_hash(texts: Iterable[str]) -> str:
    """Return the SHA-256 of texts, one per line."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode() + b"\n")
    return digest.hexdigest()


def cache_folder() -> Path:
    """Return the folder of cached files: $SID_LSG_CACHE, or $XDG_CACHE_HOME/sid_lsg."""
    if chosen := os.environ.get("SID_LSG_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sid_lsg"
