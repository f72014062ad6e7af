"""Checkpoint folders, in which each process writes its shard of the weights.

    0000500.ckpt/
        shard-00000-of-00002.ckpt    everything; of sharded tensors, the first process' rows
        shard-00001-of-00002.ckpt    the second process' rows of sharded tensors
        manifest.json                the files' lengths and checksums; written last

The shards are files of `torch.save`. A sharded tensor is `{"sid_lsg.rows": rows}` in each of them,
and the concatenated rows are the tensor. So any number of processes can read what any other number
has written. The files contain plain data and no code.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard

from sid_lsg.checkpoints.file import Damaged, Written, open_file, save_counted, sync, verify_bytes
from sid_lsg.distributed.processes import gather, process
from sid_lsg.distributed.sharding import Pieces, local, whole
from sid_lsg.files.replacing import remove, replacing

MANIFEST = "manifest.json"
_ROWS = "sid_lsg.rows"
_SHARDED = ("state_dict", "optimizer_states")  # the parts that contain sharded tensors


class Allocate(Protocol):
    """A function that allocates a tensor, as torch.empty does."""

    def __call__(self, size: Sequence[int], *, dtype: torch.dtype) -> Tensor:
        """Return an uninitialized tensor on the CPU."""


def share(state: Any) -> Any:
    """Copy unsharded tensors and this process' rows of sharded ones to the CPU. For all ranks."""
    if isinstance(state, DTensor) and state.placements == (Shard(0),):
        return {_ROWS: local(state.detach()).cpu()}
    if isinstance(state, Tensor):
        return whole(state.detach()).cpu()
    if isinstance(state, Mapping):
        return {name: share(value) for name, value in state.items()}
    return [share(value) for value in state] if isinstance(state, list) else state


def save_shares(checkpoint: Mapping[str, Any], path: Path) -> None:
    """Write a checkpoint, after `share` has been applied to its sharded parts. For all ranks.

    Raises:
        OSError: If writing fails on any rank; an earlier checkpoint of this name is unchanged.
    """
    rank, world = process()
    own = checkpoint if rank == 0 else {name: _rows_of(checkpoint[name]) for name in _SHARDED}
    folder = path.with_name(f".{path.name}.shards.tmp")  # the same name on all ranks
    _together(lambda: _make(folder) if rank == 0 else None)
    try:
        files = _together(lambda: save_counted(own, folder / _name(rank, world)))
        if rank == 0:
            _write_manifest(folder, files)
            with replacing(path) as temporary:
                folder.rename(temporary)
            sync(path.parent)
    finally:
        if rank == 0:
            remove(folder)


def open_shares(folder: Path) -> dict[str, Any]:
    """Open a complete checkpoint without reading its tensors; the sharded ones are `Pieces`.

    Raises:
        Damaged: If the shards contain anything but plain data, or differ in what they contain.
    """
    try:
        trees = [open_file(folder / name) for name in _read_manifest(folder)]
        merged = {name: _merge([tree[name] for tree in trees]) for name in _SHARDED}
        return {**trees[0], **merged}
    except Damaged:
        raise
    except Exception as error:  # malformed shards may raise anything
        raise Damaged(f"is not a checkpoint ({error!r})") from error


def joined(state: Any, allocate: Allocate = torch.empty) -> Any:
    """Concatenate all `Pieces` in a checkpoint, or in a part of one."""
    if isinstance(state, Pieces):
        return torch.cat(state.parts, out=allocate(state.shape, dtype=state.dtype))
    if type(state) is dict:  # as `_merge` returns them; other mappings stay unchanged
        return {name: joined(value, allocate) for name, value in state.items()}
    return [joined(value, allocate) for value in state] if isinstance(state, list) else state


def verify_shares(folder: Path) -> None:
    """Read all shards, and compare them with the manifest.

    Raises:
        Damaged: If one is missing or differs, or the manifest is missing.
    """
    try:
        files = _read_manifest(folder)
    except FileNotFoundError as error:
        raise Damaged(f"is incomplete: it has no {MANIFEST}") from error
    except OSError as error:
        raise Damaged(f"cannot be read ({error.strerror or error})") from error
    except (ValueError, KeyError, TypeError) as error:
        raise Damaged(f"is damaged: {MANIFEST!r} is corrupted") from error
    for name, written in files.items():
        try:
            verify_bytes(folder / name, written)
        except Damaged as damage:
            raise Damaged(f"is damaged: {name!r} {damage}") from damage


def _name(rank: int, world: int) -> str:
    return f"shard-{rank:05d}-of-{world:05d}.ckpt"


def _make(folder: Path) -> None:
    remove(folder)
    folder.mkdir(parents=True)


def _write_manifest(folder: Path, files: Sequence[Written]) -> None:
    with (folder / MANIFEST).open("w", encoding="utf-8") as file:
        json.dump({"files": [written._asdict() for written in files]}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    sync(folder)


def _read_manifest(folder: Path) -> dict[str, Written]:
    """Return the lengths and checksums of the shards, by their names."""
    found = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
    return {
        _name(rank, len(found)): Written(int(file["bytes"]), int(file["crc32"]))
        for rank, file in enumerate(found)
    }


def _rows_of(state: Any) -> Any:
    """Return a state with None for the tensors that are not sharded, which the first shard has."""
    if isinstance(state, Mapping):
        if state.keys() == {_ROWS}:
            return state
        return {name: _rows_of(value) for name, value in state.items()}
    if isinstance(state, list):
        return [_rows_of(value) for value in state]
    return None if isinstance(state, Tensor) else state


def _merge(shards: list[Any]) -> Any:
    """Merge the shards without reading tensors; the first shard has everything unsharded."""
    first = shards[0]
    if isinstance(first, dict) and first.keys() == {_ROWS}:
        return Pieces([shard[_ROWS] for shard in shards])
    if isinstance(first, dict):
        return {name: _merge([shard[name] for shard in shards]) for name in first}
    if isinstance(first, list):
        return [_merge([shard[place] for shard in shards]) for place in range(len(first))]
    return first


def _together(action: Callable[[], Any]) -> list[Any]:
    """Call a function on every rank; return all results, or raise the first error on all ranks."""
    try:
        own = action()
    except OSError as error:
        own = error
    results = gather([own])
    for result in results:
        if isinstance(result, OSError):
            raise result
    return results
