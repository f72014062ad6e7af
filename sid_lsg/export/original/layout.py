"""Rename, join and change weights by rules.

A rule is a regular expression and its replacement, applied to a weight's name. `#0`, `#1`, ... in a
replacement join several weights to one, in this order: query, key and value are one matrix in most
original codes.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

Rules = Sequence[tuple[str, str]]

_PLACE = re.compile(r"#(\d+)")


class NoPlace(ValueError):
    """A weight has no place in the original layout."""


@dataclass(frozen=True)
class Layout:
    """The original names of a network's weights.

    Attributes:
        rules: The rules, applied one after the other. A name that none matches has no place.
        changes: What to do with a weight, by a regular expression of its original name.
    """

    rules: Rules
    changes: Mapping[str, Callable[[Tensor], Tensor]] = field(default_factory=dict)

    def names(self, names: Iterable[str]) -> dict[str, list[str]]:
        """Return the original names, and which weights are joined to each.

        Raises:
            NoPlace: If a weight has no place.
        """
        places: dict[str, dict[int, str]] = {}
        for name in names:
            original, count = name, 0
            for pattern, replacement in self.rules:
                original, found = re.subn(pattern, replacement, original)
                count += found
            if not count:
                raise NoPlace(f"the weight {name!r} has no place in the original layout")
            place = _PLACE.search(original)
            original = _PLACE.sub("", original)
            joined = places.setdefault(original, {})
            if (own := int(place[1]) if place else 0) in joined:
                raise NoPlace(f"the weights {joined[own]!r} and {name!r} have the same place")
            joined[own] = name
        return {name: [joined[i] for i in sorted(joined)] for name, joined in places.items()}

    def change(self, original: str, tensor: Tensor) -> Tensor:
        """Return a joined weight as the original layout stores it."""
        for pattern, change in self.changes.items():
            if re.search(pattern, original):
                tensor = change(tensor)
        return tensor


def swap_halves(tensor: Tensor) -> Tensor:
    """Swap scale and shift: original codes store the shift first, diffusers the scale."""
    first, second = tensor.chunk(2)
    return torch.cat([second, first])


def transpose(tensor: Tensor) -> Tensor:
    """Transpose a matrix."""
    return tensor.T


def pointwise(tensor: Tensor) -> Tensor:
    """Make a linear layer's matrix the weight of a 1 x 1 convolution."""
    return tensor if tensor.ndim == 4 else tensor[:, :, None, None]
