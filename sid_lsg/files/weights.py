"""Compare and fingerprint sets of weights."""

import hashlib
from collections.abc import Iterable, Mapping
from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class _Shaped(Protocol):
    """A tensor, or a description of one that is not loaded."""

    @property
    def shape(self) -> Iterable[int]: ...


class Difference(NamedTuple):
    """A weight that differs between two sets: its name, and its shape in each (None if absent)."""

    name: str
    found: list[int] | None
    own: list[int] | None

    def between(self, found_in: str, own_in: str) -> str:
        """Describe the difference for messages, given names of the two sets."""
        found = f"absent from {found_in}" if self.found is None else f"{self.found} in {found_in}"
        own = f"absent from {own_in}" if self.own is None else f"{self.own} in {own_in}"
        # Shortened and escaped, since the name may come from any file.
        name = self.name if len(self.name) <= 100 else f"{self.name[:97]}..."
        return f"{name!a} is {found} and {own}"


def first_difference(found: Mapping[str, _Shaped], own: Mapping[str, _Shaped]) -> Difference | None:
    """Return the first weight, by name, that one set lacks or that differs in shape."""
    for name in sorted(found.keys() | own.keys()):
        shapes = [list(of[name].shape) if name in of else None for of in (found, own)]
        if shapes[0] != shapes[1]:
            return Difference(name, *shapes)
    return None


def first_not_finite(weights: Mapping[str, Tensor]) -> str | None:
    """Return the name of the first tensor that holds NaN or infinity, or None.

    One pass over the memory: the extremes of a tensor with NaN are NaN.
    """
    for name, tensor in weights.items():
        checked = tensor.is_floating_point() and tensor.numel() and not tensor.is_meta
        if checked and not torch.stack(tensor.aminmax()).isfinite().all():
            return name
    return None


def weights_hash(weights: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of the tensors' names, dtypes, shapes and data, sorted by name."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
