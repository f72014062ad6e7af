"""Inspect checkpoints with the code that opens them."""

from pathlib import Path
from typing import Any

from sid_lsg.checkpoints.opening import newest, open_checkpoint
from sid_lsg.messages.errors import UsageError


def damage(path: Path) -> str:
    """Return what is wrong with a checkpoint, as the end of a sentence; "" if it is intact."""
    try:
        open_checkpoint(path, remedy="")
    except UsageError as error:
        return str(error).removeprefix(f"--ckpt_path: {str(path)!r} ").removesuffix(". ")
    return ""


def opened(path: Path) -> dict[str, Any]:
    """Return the content of an intact checkpoint."""
    return open_checkpoint(path).content


def newest_path(folder: Path) -> tuple[Path | None, list[str]]:
    """Return the path of the newest intact checkpoint, and what is wrong with newer ones."""
    found = newest(folder)
    return (found.path, [*found.passed_over]) if found else (None, [])
