"""LoRA adapters to train in place of a network's weights."""

import math
from dataclasses import dataclass, field

from sid_lsg.messages.checks import refuse
from sid_lsg.messages.errors import UsageError


@dataclass(frozen=True)
class LoRA:
    """Adapters to train in place of a network's weights.

    Args:
        rank: Rank of an adapter's two factors.
        alpha: An adapter's output is multiplied by alpha / rank; by default alpha is the rank.
        targets: The ends of the names of the layers that get one; by default the attention's
            projections.
    """

    rank: int
    alpha: float | None = None
    targets: list[str] = field(default_factory=lambda: ["to_q", "to_k", "to_v", "to_out.0"])


def check_options(option: str, adapters: LoRA | None) -> None:
    """Refuse adapters that would do nothing, or that this installation cannot make.

    Raises:
        UsageError: Named by the option, if it is given.
    """
    if adapters is None:
        return
    if adapters.rank < 1:
        refuse(f"{option}.rank", adapters.rank, "at least 1")
    if adapters.alpha is not None and not (math.isfinite(adapters.alpha) and adapters.alpha > 0):
        refuse(f"{option}.alpha", adapters.alpha, "a positive number")
    if not adapters.targets:
        refuse(f"{option}.targets", adapters.targets, "the ends of layers' names")
    try:
        import peft  # noqa: F401
    except ImportError as error:
        raise UsageError(f"--{option} needs peft: pip install 'sid-lsg[lora]'.") from error
