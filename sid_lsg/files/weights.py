"""Sets of weights: how two of them differ, and their fingerprint."""

import hashlib
from collections.abc import Iterable, Mapping
from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class _Shaped(Protocol):
    """A tensor, or what stands for one that is not read yet."""

    @property
    def shape(self) -> Iterable[int]: ...


class Difference(NamedTuple):
    """A weight that two sets do not have alike: its name, and its shape in each; None if absent."""

    name: str
    found: list[int] | None
    own: list[int] | None

    def between(self, found_in: str, own_in: str) -> str:
        """Return the difference in words, for messages that name the two sets."""
        found = f"absent from {found_in}" if self.found is None else f"{self.found} in {found_in}"
        own = f"absent from {own_in}" if self.own is None else f"{self.own} in {own_in}"
        name = self.name if len(self.name) <= 100 else f"{self.name[:97]}..."  # of any file
        return f"{name!a} is {found} and {own}"


def first_difference(found: Mapping[str, _Shaped], own: Mapping[str, _Shaped]) -> Difference | None:
    """Return the first weight, by name, that two sets do not both have, in one shape."""
    for name in sorted(found.keys() | own.keys()):
        shapes = [list(of[name].shape) if name in of else None for of in (found, own)]
        if shapes[0] != shapes[1]:
            return Difference(name, *shapes)
    return None


def weights_hash(weights: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of tensors, with their names, types and shapes, in the names' order."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
