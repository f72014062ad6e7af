"""The settings that `benchmark` measures: a precision and a way to use memory, by their names."""

from dataclasses import dataclass
from typing import Any, Literal

import torch

from sid_lsg.networks.memory import CHECKPOINTED

Precision = Literal["config", "fp32", "tf32", "bf16", "bf16-compile"]
MemoryUse = Literal[
    "config",
    "fast",
    "balanced",
    "lean",
    "fast-checkpointing",
    "balanced-checkpointing",
    "lean-checkpointing",
]

# The Trainer's precision, and options of `--model.`.
_PRECISIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "fp32": ("32-true", {"tf32": False}),
    "tf32": ("32-true", {"tf32": True}),
    "bf16": ("bf16-mixed", {}),
    "bf16-compile": ("bf16-mixed", {"compile": True}),
}
_DTYPES = {"bf16": torch.bfloat16, "16": torch.float16}


@dataclass(frozen=True)
class Setting:
    """What differs between two measurements of a config.

    Attributes:
        precision: Name of the precision, or "config" for the config's own.
        memory: Name of the choice of `--model.memory`, with "-checkpointing" if all networks
            compute their activations again; or "config".
        own_precision: The config's, as the Trainer names it.
    """

    precision: Precision
    memory: MemoryUse
    own_precision: str

    @property
    def name(self) -> str:
        """What tells it from others."""
        return setting_name(self.precision, self.memory)

    @property
    def trainer_precision(self) -> str:
        """The precision as the Trainer names it."""
        return _PRECISIONS.get(self.precision, (self.own_precision, {}))[0]

    @property
    def dtype(self) -> torch.dtype:
        """The type in which most is computed, whose ceiling counts."""
        own = self.trainer_precision
        return next((t for name, t in _DTYPES.items() if own.startswith(name)), torch.float32)

    @property
    def changes(self) -> dict[str, Any]:
        """The options of `--model.` that it changes."""
        changes = dict(_PRECISIONS.get(self.precision, ("", {}))[1])
        if self.memory != "config":
            memory, _, again = self.memory.partition("-")
            networks = [*CHECKPOINTED] if again else None
            changes |= {"memory": memory, "gradient_checkpointing": networks}
        return changes


def setting_name(precision: str, memory: str) -> str:
    """Name a precision and a way to use memory; only the precision, if that is as configured."""
    return precision + (f", {memory}" if memory != "config" else "")
