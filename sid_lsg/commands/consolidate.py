"""Make one file of a checkpoint that lies in a folder."""

import mmap
import os
import tempfile
from collections.abc import Sequence
from math import prod
from pathlib import Path

from sid_lsg.files.replacing import writing
from sid_lsg.messages.errors import UsageError


def consolidate(ckpt_path: str, output: str, overwrite: bool = False) -> None:
    """Make one checkpoint file of the folder that `--trainer.strategy fsdp2_sharded` writes.

    It is the file that `fsdp2` would have written. Training continues from either, under any
    strategy; a file is easier to copy and to keep. The folder stays as it is. Little memory is
    needed, and for a while twice the file's space on the disk.

    Args:
        ckpt_path: The folder, for example runs/x/checkpoints/last.ckpt.
        output: The file.
        overwrite: Whether to replace a file of that name.

    Raises:
        UsageError: If the folder is incomplete or damaged, or the file is there or cannot be
            written.
    """
    import torch
    from lightning.pytorch.utilities import rank_zero_info

    from sid_lsg.checkpoints.io import SafeCheckpointIO
    from sid_lsg.checkpoints.opening import open_checkpoint
    from sid_lsg.checkpoints.shards import joined

    source, target = Path(ckpt_path).expanduser(), Path(output).expanduser()
    if not source.is_dir():
        what = "is one file already" if source.exists() else "does not exist"
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
                """Make room for a tensor in the temporary file."""
                place = -(-os.fstat(scratch.fileno()).st_size // mmap.PAGESIZE) * mmap.PAGESIZE
                length = prod(size) * dtype.itemsize
                os.posix_fallocate(scratch.fileno(), place, max(length, 1))  # or there is no room
                mapped = mmap.mmap(scratch.fileno(), length or 1, offset=place)
                return torch.frombuffer(mapped, dtype=dtype, count=prod(size)).view(tuple(size))

            SafeCheckpointIO().save_checkpoint(joined(found, allocate), target)
    rank_zero_info(f"{target}: {target.stat().st_size / 2**30:.2f} GiB")
