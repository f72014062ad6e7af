"""The files beside the newest checkpoint: links to it, second names, and what is deleted."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_warn

from sid_lsg.files.replacing import remove, replacing


def on_first(trainer: L.Trainer, action: Callable[..., Any], *arguments: Any) -> None:
    """Change files beside the newest checkpoint; that this fails is no reason to end a run."""
    if trainer.is_global_zero:
        try:
            action(*arguments)
        except OSError as error:
            rank_zero_warn(f"The checkpoints could not be put in order: {error}.")


def delete(path: Path, named: str | Path | None) -> None:
    """Delete a checkpoint, except what the user has named to continue from."""
    if named is None or Path(named).absolute() != path.absolute():
        remove(path)


def keep_as(source: Path, target: Path) -> None:
    """Give a checkpoint another name in place of `target`, for good: whatever becomes of the first.

    Raises:
        OSError: If that is impossible; `target` is as it was.
    """
    source = source.resolve()
    with replacing(target, over_folder=True) as temporary:
        remove(temporary)  # a killed process', if numbers of processes return
        if source.is_dir():
            shutil.copytree(source, temporary, copy_function=_link)
        else:
            _link(source, temporary)


def _link(source: str | Path, target: str | Path) -> None:
    try:
        os.link(source, target)  # a second name costs no space
    except OSError:  # not every file system has hard links
        shutil.copy(source, target)


def point(link: Path, target: Path) -> None:
    """Make a link to a checkpoint in the same folder, in place of what had the link's name.

    Raises:
        OSError: If that is impossible; `link` is as it was.
    """
    try:
        with replacing(link, over_folder=True) as temporary:
            remove(temporary)
            temporary.symlink_to(target.name)  # relative: the folder can be moved
    except OSError:  # not every file system has links
        keep_as(target, link)
