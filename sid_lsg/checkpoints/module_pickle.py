"""Read the weights of pickled modules without Python's unpickler.

A pickled network is a tree of modules. The state of each contains its parameters, buffers and
submodules. A tensor is a call that combines a storage, an offset, a size and strides. A storage is
a byte string in the old format of `torch.save`.
"""

import mmap
import re
import struct
from dataclasses import dataclass
from functools import cache
from math import prod
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sid_lsg.checkpoints.inert_pickle import Name, Record, Vocabulary, expect, quoted, read_pickle

_MAGIC, _FORMAT = 0x1950A86A20F9469CFC6C, 1001  # of the old format of torch.save
_DTYPES = {
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.DoubleStorage": torch.float64,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
}
_MOST_ENTRIES = 200_000  # of all modules together; Stable Diffusion's UNet has 2,000
_LONGEST_NAME, _LONGEST_PREFIX = 100, 1000
_MOST_DIMENSIONS = 8


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file.

    Attributes:
        dtype: Its dtype.
        shape: Its shape.
        stride: Its strides, in elements.
        raw: The bytes from its first element to its last.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    raw: memoryview

    def load(self) -> Tensor:
        """Copy the tensor from the file into memory."""
        elements = torch.frombuffer(bytearray(self.raw), dtype=self.dtype)
        return elements.as_strided(self.shape, self.stride)


class _Storage(NamedTuple):
    dtype: torch.dtype
    raw: memoryview


class _Header(NamedTuple):
    """The description of a storage in the old format; the data follow after the pickle."""

    dtype: torch.dtype
    key: str
    elements: int


def read_modules(path: Path) -> Any:
    """Read a pickle of modules.

    The file is mapped into memory; weights are not read before they are loaded.

    Returns:
        The content, with each object as a `Record` and each tensor as a `StoredTensor`.

    Raises:
        OSError: If the file cannot be read.
        UnpicklingError: If it is damaged, or contains anything that is not part of a network; the
            message starts with "it".
    """
    with path.open("rb") as file:
        if not path.stat().st_size:
            raise UnpicklingError("it is empty")
        content = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    return read_pickle(content, _networks())[0]


def weights(module: Any) -> dict[str, StoredTensor]:
    """Return a module's parameters and persistent buffers, by the names of its `state_dict`.

    Raises:
        UnpicklingError: If it is not a module, or a forged one.
    """
    found: dict[str, StoredTensor] = {}
    waiting, left = [("", module)], _MOST_ENTRIES
    while waiting:
        prefix, part = waiting.pop()
        parameters, buffers, modules, unsaved = _parts(part, prefix)
        left -= 1 + len(parameters) + len(buffers) + len(modules)
        if left < 0:  # a module can be in several others
            raise UnpicklingError("it has too many modules for a network")
        if len(prefix) > _LONGEST_PREFIX:  # or in itself
            raise UnpicklingError("its modules are nested too deeply for a network")
        for name, tensor in (parameters | buffers).items():
            if name in unsaved or tensor is None:
                continue
            if type(tensor) is not StoredTensor:
                raise UnpicklingError(f"its {quoted(f'{prefix}{name}')} is not a tensor")
            found[f"{prefix}{name}"] = tensor
        inside = [(f"{prefix}{name}.", each) for name, each in modules.items() if each is not None]
        waiting += reversed(inside)
    return found


def config(module: Any) -> dict[str, Any]:
    """Return the options that diffusers has recorded in a module, if they are plain data."""
    state = module.state if type(module) is Record else None
    recorded = state.get("_internal_dict") if type(state) is dict else None
    plain = (type(None), bool, int, float, str)

    def is_plain(value: Any) -> bool:
        listed = value if type(value) in (list, tuple) else [value]
        return all(type(each) in plain for each in listed)

    entries = recorded.items() if type(recorded) is dict else ()
    return {key: value for key, value in entries if type(key) is str and is_plain(value)}


def _parts(module: Any, prefix: str) -> list[Any]:
    """Return a module's parameters, buffers, submodules, and names of non-persistent buffers."""
    state = module.state if type(module) is Record else None
    if type(state) is dict:
        parts = [state.get(name) for name in ("_parameters", "_buffers", "_modules")]
        unsaved = state.get("_non_persistent_buffers_set")
        if all(map(_is_named, parts)) and type(unsaved) in (set, frozenset):
            return [*parts, unsaved]
    raise UnpicklingError(f"its {quoted(prefix)} is not a module of a network")


def _is_named(part: Any) -> bool:
    names = part if type(part) is dict else [None]
    return all(type(name) is str and len(name) <= _LONGEST_NAME for name in names)


def _storage(content: Any) -> _Storage:
    """Read a storage in the old format of torch.save: five pickles, the length, the data."""
    parts, position = [], 0
    for _ in range(5):
        part, position = read_pickle(expect(memoryview, content), _STORAGES, position)
        parts.append(part)
    magic, version, system, header, keys = parts
    if (magic, version) != (_MAGIC, _FORMAT) or type(header) is not _Header:
        raise UnpicklingError("it holds a storage in an unknown format")
    if type(system) is not dict or system.get("little_endian") is not True:
        raise UnpicklingError("it holds a storage of another byte order")
    data = content[position + 8 :]
    (elements,) = struct.unpack("<q", content[position : position + 8])
    if (keys, elements) != ([header.key], header.elements) or (
        len(data) != elements * header.dtype.itemsize
    ):
        raise UnpicklingError("it holds a storage whose length differs from its header")
    return _Storage(header.dtype, data)


def _header(reference: Any) -> _Header:
    """Read a reference to a storage: its type, key, device (ignored) and length."""
    _, kind, key, _, elements, view = expect(tuple, reference)
    expect(type(None), view)
    return _Header(_DTYPES[expect(Name, kind).text], expect(str, key), expect(int, elements))


def _tensor(
    storage: Any, offset: Any, size: Any, stride: Any, gradient: Any, hooks: Any, *metadata: Any
) -> StoredTensor:
    """Return a tensor of a storage; reject one that is not inside the storage or is larger."""
    expect(_Storage, storage)
    if len(expect(tuple, size)) > _MOST_DIMENSIONS or len(expect(tuple, stride)) != len(size):
        raise UnpicklingError("it holds a tensor of an unknown layout")
    numbers = [expect(int, number) for number in (offset, *size, *stride)]
    if any(metadata):  # a view of complex numbers
        raise UnpicklingError("it holds a tensor of an unknown layout")
    length = len(storage.raw) // storage.dtype.itemsize
    span = 1 + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    fits = offset + span <= length and prod(size) <= length and max(stride, default=0) <= length
    if not fits or min(size, default=1) < 1 or min(numbers) < 0:
        raise UnpicklingError("it holds a tensor that does not fit its storage")
    start, width = offset * storage.dtype.itemsize, span * storage.dtype.itemsize
    return StoredTensor(storage.dtype, size, stride, storage.raw[start : start + width])


def _parameter(data: Any, requires_grad: Any, hooks: Any, state: Any = None) -> StoredTensor:
    return expect(StoredTensor, data)


def _set(items: Any) -> frozenset:
    """Return the set that protocols 2 and 3 write as a list."""
    if len(expect(list, items)) > 100:
        raise UnpicklingError("it holds a set that is too large for a network's")
    return frozenset(expect(str, item) for item in items)


def _networks() -> Vocabulary:
    """Return the vocabulary of one file."""
    # Cached, so that repeated calls with the same text use no further memory.
    latin1 = cache(lambda text: memoryview(text.encode("latin-1")))

    def encode(text: Any, encoding: Any) -> memoryview:
        """Return the bytes that protocol 2 writes as text."""
        if encoding != "latin1":
            raise ValueError
        return latin1(expect(str, text))

    return Vocabulary(
        recorded=_RECORDED.fullmatch,
        calls={
            "collections.OrderedDict": lambda: {},
            "diffusers.configuration_utils.FrozenDict": lambda: {},
            "builtins.set": _set,
            "_codecs.encode": encode,
            "torch.Size": lambda numbers: expect(tuple, numbers),
            "torch.device": lambda *description: Record("torch.device"),
            "torch.storage._load_from_bytes": _storage,
            "torch._utils._rebuild_tensor_v2": _tensor,
            "torch._utils._rebuild_parameter": _parameter,
            "torch._utils._rebuild_parameter_with_state": _parameter,
        },
        persistent=None,
        most_instructions=2_000_000,  # Stable Diffusion's UNet has 95,000
    )


_RECORDED = re.compile(
    r"(torch\.nn|torch\._C\._nn|diffusers)(\.[A-Za-z]\w*)+|torch\.(float32|float16|bfloat16)",
    re.ASCII,
)
_STORAGES = Vocabulary(_DTYPES.__contains__, {}, _header, most_instructions=100)
