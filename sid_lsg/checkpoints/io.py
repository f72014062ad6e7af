"""Checkpoints: written whole or not at all, verified, and read without running code.

They are files, or the folders of sharded_checkpoints.py.
"""

import importlib.metadata
import platform
import re
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import lightning as L
from lightning.pytorch.plugins.io import TorchCheckpointIO

from sid_lsg.checkpoints.file import damage_of_content, damage_of_records, open_file, save, sync
from sid_lsg.checkpoints.shards import damage_of_folder, joined, open_shares
from sid_lsg.files.replacing import replacing
from sid_lsg.messages.errors import UsageError

BEST, GOOD, LAST = "best.ckpt", "good.ckpt", "last.ckpt"
RECORD = "sid_lsg"  # where a file says what it is and what has written it
SCHEMA = 1  # to be raised when what is written today can no longer be continued from

_NAME = re.compile(r"(\d{7,}|last|good|best)\.ckpt")
_NEEDED = ("state_dict", "optimizer_states", "loops", "pytorch-lightning_version")
_PACKAGES = ("torch", "lightning", "diffusers", "transformers", "sid-lsg")


class SafeCheckpointIO(TorchCheckpointIO):
    """Write to a temporary name, then rename; read nothing but whole checkpoints of plain data."""

    def save_checkpoint(
        self, checkpoint: Mapping[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        """Write a file straight from the tensors; it is on the disk when this returns.

        Raises:
            OSError: If that is impossible; what had this name before is as it was.
        """
        with replacing(Path(path), over_folder=True) as temporary:
            save(checkpoint, temporary)
        sync(Path(path).parent)

    def load_checkpoint(
        self, path: Any, map_location: Any = "cpu", weights_only: bool | None = True
    ) -> dict[str, Any]:
        """Read a file or folder, without running code that it may hold, whatever is asked for.

        Tensors of a file are read when they are used, and take no memory before that.

        Raises:
            UsageError: If it is not a whole checkpoint, or of a newer version.
        """
        return cast(dict[str, Any], joined(load(Path(path))))


def load(path: Path) -> dict[str, Any]:
    """Open a whole checkpoint; a folder's sharded tensors are `Pieces`.

    Raises:
        UsageError: If it is not a whole checkpoint, or of a newer version.
    """
    verify(path)
    found = peek(path)
    check_contents(found, str(path))
    return found


def write(trainer: L.Trainer, path: Path) -> str:
    """Write the logs and then a checkpoint; return what went wrong. For all ranks, and on all."""
    what = ""
    try:
        for logger in trainer.loggers:
            logger.save()  # a continued run counts on the rows up to its checkpoint
    except (OSError, UsageError) as error:
        what = str(error)
    if what := trainer.strategy.broadcast(what):
        return str(what)
    try:
        trainer.save_checkpoint(path, weights_only=False)  # what is saved: all
    except OSError as error:
        what = error.strerror or str(error)
        trainer.strategy.barrier("Trainer.save_checkpoint")  # where the other ranks are
    return str(trainer.strategy.broadcast(what))


# ---------------------------------------------------------------------- is it whole?


def damage(path: Path) -> str:
    """Say what is wrong with a checkpoint, as the end of a sentence; "" for nothing."""
    try:
        stats = [part.stat() for part in (path, *path.glob("*"))]
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return _damage(path, tuple((s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns) for s in stats))


@lru_cache(maxsize=64)  # one command looks at a checkpoint several times, and they are large
def _damage(path: Path, _: tuple[tuple[int, ...], ...]) -> str:
    if path.is_dir():
        return damage_of_folder(path)
    return damage_of_records(path) or damage_of_content(path, open_file)


def peek(path: Path) -> dict[str, Any]:
    """Open a checkpoint without reading its tensors; a folder's sharded ones are `Pieces`."""
    return open_shares(path) if path.is_dir() else cast(dict[str, Any], open_file(path))


def verify(path: Path) -> None:
    """Refuse what is not a whole checkpoint.

    Raises:
        UsageError: If it is not.
    """
    if what := damage(path):
        raise UsageError(
            f"--ckpt_path: {str(path)!r} {what}. Give another checkpoint, or `last` for the newest "
            "whole one in the run directory."
        )


def newest(folder: Path, option: str = "ckpt_path last") -> tuple[Path | None, list[str]]:
    """Find the newest whole checkpoint in a folder.

    `last.ckpt` comes first, wherever it points: a run may have returned to an earlier checkpoint.

    Args:
        folder: The folder.
        option: The option that named it, for messages.

    Returns:
        Its path, None for an empty folder; and what is wrong with those that come before it.

    Raises:
        UsageError: If none of several is whole.
    """
    found = [path for path in folder.glob("*.ckpt") if _NAME.fullmatch(path.name)]
    found.sort(key=lambda p: (p.name == LAST, p.lstat().st_mtime_ns, p.name), reverse=True)
    skipped: dict[Path, str] = {}  # last.ckpt is a link, and links of links there may be
    for path in found:
        if path.resolve() in skipped:
            continue
        if not (what := damage(path)):
            return path, [*skipped.values()]
        skipped[path.resolve()] = f"{str(path.resolve())!r} {what}"
    if not found:
        return None, []
    raise UsageError(
        f"--{option}: there is no whole checkpoint in {str(folder)!r}: "
        f"{'; '.join(skipped.values())}. Put one of them back from a copy, or train afresh."
    )


# ---------------------------------------------------------------------- what is in it


def check_contents(found: Any, path: str, option: str = "ckpt_path") -> None:
    """Refuse a file of a newer version, and one that is not of a training.

    Args:
        found: What the file holds.
        path: Its path, for messages.
        option: The option that named it, for messages.

    Raises:
        UsageError: If it is.
    """
    record = found.get(RECORD) if isinstance(found, dict) else None
    schema = record.get("schema") if isinstance(record, dict) else 0  # older ones hold no record
    if not isinstance(schema, int) or schema > SCHEMA:
        by = (record or {}).get("versions", {}).get("sid-lsg", "unknown")
        raise UsageError(
            f"--{option}: {path!r} is of schema {schema!r}, and this version reads up to {SCHEMA}. "
            f"Continue with the version of sid_lsg that wrote it ({by}) or a newer one."
        )
    for name in _NEEDED:
        if not isinstance(found, dict) or name not in found:
            raise UsageError(
                f"--{option}: {path!r} is not a checkpoint of a training: it lacks {name!r}. Give "
                "one from a run directory's checkpoints/."
            )


def add_record(checkpoint: dict[str, Any], config: Mapping[str, Any] | None) -> None:
    """Say in a checkpoint what it is: schema, versions, the run's configuration; plain data.

    One that is made when the next iteration has begun counts that one too. It is to be done again,
    so it is taken out.
    """
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):  # a source tree, not installed
            versions[name] = importlib.metadata.version(name)
    checkpoint[RECORD] = {"schema": SCHEMA, "versions": versions, "config": config}
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    if progress["total"]["ready"] > progress["total"]["started"]:
        for counts in (progress["total"], progress["current"]):
            counts["ready"] = counts["started"]
        progress["is_last_batch"] = False  # the next one's
