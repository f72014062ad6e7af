"""Write safetensors files that are larger than memory."""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

_TYPES = {  # safetensors' names
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


class Pending(NamedTuple):
    """A tensor that is made when it is written."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    make: Callable[[], Tensor]


def write_safetensors(path: Path, tensors: Iterable[Pending], metadata: Mapping[str, str]) -> None:
    """Write tensors to a safetensors file, one after the other.

    Args:
        path: The file.
        tensors: The tensors; each is made when it is written, and freed.
        metadata: The file's metadata.

    Raises:
        OSError: If writing fails.
    """
    # Larger numbers first, then by name, as safetensors does: so each tensor is aligned.
    ordered = sorted(tensors, key=lambda one: (-one.dtype.itemsize, one.name))
    header: dict[str, object] = {"__metadata__": {"format": "pt", **metadata}}
    end = 0
    for name, dtype, shape, _ in ordered:
        start, end = end, end + dtype.itemsize * torch.Size(shape).numel()
        header[name] = {"dtype": _TYPES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    with path.open("wb") as file:
        file.write(encoded(header))
        for one in ordered:
            made = one.make().detach().cpu().contiguous()
            file.write(made.flatten().view(torch.uint8).numpy().data)


def encoded(header: Mapping[str, object]) -> bytes:
    """Return a header of a safetensors file with its length, padded to a multiple of 8 bytes."""
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
