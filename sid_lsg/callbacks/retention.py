"""Link, rename and delete checkpoint files."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_warn

from sid_lsg.files.replacing import link, remove, replacing


def on_first(trainer: L.Trainer, action: Callable[..., Any], *arguments: Any) -> None:
    """Change checkpoint files on the first rank; only warn if that fails."""
    if trainer.is_global_zero:
        try:
            action(*arguments)
        except OSError as error:
            rank_zero_warn(f"Checkpoints could not be renamed or deleted: {error}.")


def delete(path: Path, named: str | Path | None) -> None:
    """Delete a checkpoint unless it is the one that --ckpt_path names."""
    if named is None or Path(named).absolute() != path.absolute():
        remove(path)


def keep_as(source: Path, target: Path) -> None:
    """Give a checkpoint a second name, which remains when the first one is deleted.

    Raises:
        OSError: If that fails; `target` is unchanged.
    """
    source = source.resolve()
    with replacing(target, over_folder=True) as temporary:
        if source.is_dir():
            shutil.copytree(source, temporary, copy_function=link)
        else:
            link(source, temporary)


def point(name: Path, target: Path) -> None:
    """Replace `name` by a link to a checkpoint in the same folder.

    Raises:
        OSError: If that fails; `name` is unchanged.
    """
    try:
        with replacing(name, over_folder=True) as temporary:
            temporary.symlink_to(target.name)  # relative: the folder can be moved
    except OSError:  # not every file system has links
        keep_as(target, name)
