"""Verify, open and check checkpoints; each is read once and then passed on."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sid_lsg.checkpoints.file import Damaged, open_file, verify_records
from sid_lsg.checkpoints.record import RECORD, check_contents
from sid_lsg.checkpoints.shards import open_shares, verify_shares
from sid_lsg.messages.errors import UsageError
from sid_lsg.options.renamed import current

BEST, GOOD, LAST = "best.ckpt", "good.ckpt", "last.ckpt"
CONTINUE = "Give another checkpoint, or `last` for the newest valid one in the run directory."

_ATTEMPTS = 10
_NAME = re.compile(r"(\d{7,}|last|good|best)\.ckpt")


@dataclass(frozen=True)
class OpenCheckpoint:
    """A verified checkpoint of a run; its tensors are read when they are used.

    While it is referenced, its file occupies the disk, even if the file is deleted.

    Attributes:
        path: The file or folder.
        content: The content; a folder's sharded tensors are `Pieces`.
        passed_over: Descriptions of newer checkpoints that are damaged.
    """

    path: Path
    content: dict[str, Any]
    passed_over: tuple[str, ...] = ()

    @property
    def record(self) -> dict[str, Any]:
        """Return schema, versions and configuration; {} if the checkpoint has no record.

        A configuration of an earlier version is returned with the current names of its options.
        """
        record = self.content.get(RECORD) or {}
        config = record.get("config")
        return record | {"config": current(config)} if config else record

    @property
    def config(self) -> Mapping[str, Any]:
        """Return the configuration of the run that wrote it; {} if it has none."""
        return self.record.get("config") or {}

    @property
    def iterations(self) -> int:
        """Return the number of completed iterations."""
        return int(self.content["global_step"])


def open_checkpoint(
    path: Path, option: str = "ckpt_path", remedy: str = "Give another checkpoint."
) -> OpenCheckpoint:
    """Verify, open and check a checkpoint.

    Args:
        path: The file or folder.
        option: Name of the option that gave it, for error messages.
        remedy: What to do if it is damaged, for error messages.

    Raises:
        UsageError: If it is damaged, not a checkpoint of a run, or of a newer version.
    """
    try:
        content = _open(path)
    except Damaged as damage:
        raise UsageError(f"--{option}: {str(path)!r} {damage}. {remedy}") from damage
    check_contents(content, str(path), option)
    return OpenCheckpoint(path, content)


def newest(folder: Path, option: str = "ckpt_path last") -> OpenCheckpoint | None:
    """Open the newest valid checkpoint in a folder.

    `last.ckpt` takes precedence, since a run may have returned to an earlier checkpoint.

    Args:
        folder: The folder.
        option: The option that named it, for messages.

    Returns:
        The checkpoint; None for an empty folder.

    Raises:
        UsageError: If all of them are damaged, or the newest valid one is not a checkpoint of a run
            or is of a newer version.
    """
    found = [path for path in folder.glob("*.ckpt") if _NAME.fullmatch(path.name)]
    found.sort(key=lambda p: (p.name == LAST, p.lstat().st_mtime_ns, p.name), reverse=True)
    skipped: dict[Path, str] = {}  # by resolved path: last.ckpt may be a link
    for path in found:
        file = path.resolve()
        if file in skipped:
            continue
        try:
            content = _open(path)
        except Damaged as damage:
            skipped[file] = f"{str(file)!r} {damage}"
            continue
        check_contents(content, str(path), option.split()[0])
        return OpenCheckpoint(path, content, tuple(skipped.values()))
    if not found:
        return None
    raise UsageError(
        f"--{option}: there is no valid checkpoint in {str(folder)!r}: "
        f"{'; '.join(skipped.values())}. Restore one from a backup, or start a new run."
    )


def find_checkpoint(path: str | Path, option: str = "ckpt_path") -> OpenCheckpoint | None:
    """Open the checkpoint that a path names: a file or folder, or the newest of a run directory.

    Args:
        path: The path.
        option: The option that gave it, for messages.

    Returns:
        The checkpoint; None for any other path.

    Raises:
        UsageError: If the checkpoint does not exist, is damaged, or is of a newer version.
    """
    path = Path(path).expanduser()
    if path.suffix == ".ckpt":
        if not path.exists():
            raise _no_checkpoint(path, option)
        return open_checkpoint(path, option)
    if not (path / "checkpoints").is_dir() or (path / "model_index.json").is_file():
        return None
    found = newest(path / "checkpoints", option)
    if found is None:
        raise UsageError(
            f"--{option}: {str(path)!r} contains no checkpoint yet. Train longer, or give a file."
        )
    return found


def require_checkpoint(path: str | Path, option: str = "ckpt_path") -> OpenCheckpoint:
    """Open the checkpoint that a path names, as `find_checkpoint` does.

    Raises:
        UsageError: As `find_checkpoint`, and if the path is neither.
    """
    found = find_checkpoint(path, option)
    if found is None:
        raise _no_checkpoint(path, option)
    return found


def iterations_of(path: Path) -> int | None:
    """Return a checkpoint's number of iterations without verifying its tensors.

    Returns:
        The number; None if the checkpoint cannot be read.
    """
    try:
        found = open_shares(path) if path.is_dir() else open_file(path)
        return int(found["global_step"])
    except (Damaged, OSError, ValueError, KeyError, TypeError):
        return None


def _open(path: Path) -> Any:
    """Verify and open a checkpoint.

    A link such as last.ckpt is followed once, so that all files are of one checkpoint. If a run has
    pointed it to another checkpoint meanwhile, and deleted this one, that is opened instead.

    Raises:
        Damaged: If it is incomplete, corrupted or not plain data.
    """
    for attempt in range(1, _ATTEMPTS + 1):
        found = path.resolve()
        try:
            if found.is_dir():
                verify_shares(found)
                return open_shares(found)
            verify_records(found)
            return open_file(found)
        except Damaged:
            if path.resolve() == found or attempt == _ATTEMPTS:
                raise
    raise AssertionError


def _no_checkpoint(path: str | Path, option: str) -> UsageError:
    return UsageError(
        f"--{option}: there is no checkpoint {str(path)!r}. Give a .ckpt file from a run "
        "directory's checkpoints/, or the run directory."
    )
