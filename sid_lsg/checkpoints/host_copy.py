"""Copy a checkpoint's content to host memory, so that it can be written while training goes on."""

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, UntypedStorage

from sid_lsg.distributed.host_memory import has_room


def host_copy(content: Mapping[str, Any], gathered: bool = False) -> Any:
    """Copy a checkpoint's content to host memory.

    Tensors that share memory share their copies' memory, so both are written alike.

    Args:
        content: The content.
        gathered: Whether weights and optimizers' states are copies in host memory already. They are
            not copied again.

    Returns:
        The copy; None if the memory is not free.
    """
    own: list[Any] = []
    if gathered:
        states = [optimizer["state"] for optimizer in content["optimizer_states"]]
        own = [content["state_dict"], states]
    copies = {id(tensor): tensor for tensor in _tensors(own)}
    live = [tensor for tensor in _tensors(content) if id(tensor) not in copies]
    storages = {s._cdata: s for s in (tensor.untyped_storage() for tensor in live)}
    if not has_room(sum(storage.nbytes() for storage in storages.values())):
        return None
    copied = {key: _copy(storage) for key, storage in storages.items()}
    for tensor in live:
        shape = tensor.storage_offset(), tensor.shape, tensor.stride()
        empty = torch.empty(0, dtype=tensor.dtype)
        copies[id(tensor)] = empty.set_(copied[tensor.untyped_storage()._cdata], *shape)
    return copy.deepcopy(content, copies)  # other objects may change, too


def _copy(storage: UntypedStorage) -> UntypedStorage:
    return storage.clone() if storage.device.type == "cpu" else storage.cpu()


def _tensors(state: Any) -> Iterator[Tensor]:
    """Yield the tensors of a checkpoint that are no more than a view of their memory."""
    if type(state) is Tensor and state.layout == torch.strided and not state.is_meta:
        yield state
    elif isinstance(state, Mapping):
        for value in state.values():
            yield from _tensors(value)
    elif isinstance(state, list | tuple):
        for value in state:
            yield from _tensors(value)
