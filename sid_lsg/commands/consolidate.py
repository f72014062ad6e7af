"""`consolidate`: convert a checkpoint folder into one file."""

import mmap
import os
import tempfile
from collections.abc import Sequence
from math import prod
from pathlib import Path

from sid_lsg.files.replacing import writing
from sid_lsg.messages.errors import UsageError


def consolidate(ckpt_path: str, output: str, overwrite: bool = False) -> None:
    """Convert a checkpoint folder of `--trainer.strategy fsdp2_sharded` into one file.

    The file is the same as `fsdp2` would write. A run can resume from the folder and from the file,
    with any strategy; the file is easier to copy. The folder is not changed. The command needs
    little memory, and temporarily twice the file's disk space.

    Args:
        ckpt_path: The folder, for example runs/x/checkpoints/last.ckpt.
        output: The file to write.
        overwrite: Replace an existing file.

    Raises:
        UsageError: If the folder is incomplete or damaged, or the file exists or cannot be written.
    """
    import torch
    from lightning.pytorch.utilities import rank_zero_info

    from sid_lsg.checkpoints.io import SafeCheckpointIO
    from sid_lsg.checkpoints.opening import open_checkpoint
    from sid_lsg.checkpoints.shards import joined

    source, target = Path(ckpt_path).expanduser(), Path(output).expanduser()
    if not source.is_dir():
        what = "is already one file" if source.exists() else "does not exist"
        raise UsageError(f"--ckpt_path: {str(source)!r} {what}. Give a checkpoint's folder.")
    if target.is_dir():
        raise UsageError(f"--output: {str(target)!r} is a folder. Give a file's name.")
    if target.exists() and not overwrite:
        raise UsageError(
            f"--output: {str(target)!r} exists. Give another name, or --overwrite true."
        )
    found = open_checkpoint(source).content
    with writing(target.parent, "output"):
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=target.parent) as scratch:

            def allocate(size: Sequence[int], *, dtype: torch.dtype) -> torch.Tensor:
                """Allocate a tensor in the temporary file."""
                place = -(-os.fstat(scratch.fileno()).st_size // mmap.PAGESIZE) * mmap.PAGESIZE
                length = prod(size) * dtype.itemsize
                os.posix_fallocate(scratch.fileno(), place, max(length, 1))  # fails on a full disk
                mapped = mmap.mmap(scratch.fileno(), length or 1, offset=place)
                return torch.frombuffer(mapped, dtype=dtype, count=prod(size)).view(tuple(size))

            SafeCheckpointIO().save_checkpoint(joined(found, allocate), target)
    rank_zero_info(f"{target}: {target.stat().st_size / 2**30:.2f} GiB")
