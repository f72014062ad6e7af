"""Options of LoRA adapters."""

import math
from dataclasses import dataclass, field

from sid_lsg.messages.checks import refuse


@dataclass(frozen=True)
class LoRA:
    """LoRA adapters to train instead of a network's weights.

    Args:
        rank: Rank of the adapters.
        alpha: The adapters' output is multiplied by alpha / rank. By default alpha is the rank.
        targets: Suffixes of the names of the layers to adapt; by default the attention
            projections.
    """

    rank: int
    alpha: float | None = None
    targets: list[str] = field(default_factory=lambda: ["to_q", "to_k", "to_v", "to_out.0"])


def check_options(option: str, adapters: LoRA | None) -> None:
    """Validate LoRA options, if given.

    Args:
        option: Name of their option, for error messages.
        adapters: The options; None for a network without adapters.

    Raises:
        UsageError: If a value is out of range.
    """
    if adapters is None:
        return
    if adapters.rank < 1:
        refuse(f"{option}.rank", adapters.rank, "at least 1")
    if adapters.alpha is not None and not (math.isfinite(adapters.alpha) and adapters.alpha > 0):
        refuse(f"{option}.alpha", adapters.alpha, "a positive number")
    if not adapters.targets:
        refuse(f"{option}.targets", adapters.targets, "suffixes of layers' names")
