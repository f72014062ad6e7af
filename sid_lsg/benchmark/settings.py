"""The settings that `benchmark` measures: a precision and a memory mode, by name."""

from dataclasses import dataclass
from typing import Any

import torch

from sid_lsg.options.choices import MeasuredPrecision, MemoryUse
from sid_lsg.options.training import CHECKPOINTED

# The Trainer's precision, and changed options of `--model.`.
_PRECISIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "fp32": ("32-true", {"compute.tf32": False}),
    "tf32": ("32-true", {"compute.tf32": True}),
    "bf16": ("bf16-mixed", {}),
    "bf16-compile": ("bf16-mixed", {"compute.compile": True}),
}
_DTYPES = {"bf16": torch.bfloat16, "16": torch.float16}


@dataclass(frozen=True)
class Setting:
    """A precision and a memory mode for which a config is measured.

    Attributes:
        precision: Name of the precision, or "config" for the config's.
        memory: Value of `--model.memory.activations`, with "-checkpointing" for activation
            checkpointing in all networks; or "config" for the config's.
        own_precision: The config's precision, as the Trainer names it.
    """

    precision: MeasuredPrecision
    memory: MemoryUse
    own_precision: str

    @property
    def name(self) -> str:
        """The name of the setting."""
        return setting_name(self.precision, self.memory)

    @property
    def trainer_precision(self) -> str:
        """The precision as the Trainer names it."""
        return _PRECISIONS.get(self.precision, (self.own_precision, {}))[0]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of matrix products, whose peak FLOP/s is the ceiling."""
        own = self.trainer_precision
        return next((t for name, t in _DTYPES.items() if own.startswith(name)), torch.float32)

    @property
    def changes(self) -> dict[str, Any]:
        """The changed options of `--model.`, by their dotted names."""
        changes = dict(_PRECISIONS.get(self.precision, ("", {}))[1])
        if self.memory != "config":
            memory, _, checkpointing = self.memory.partition("-")
            networks = [*CHECKPOINTED] if checkpointing else None
            changes |= {"memory.activations": memory, "memory.checkpointing": networks}
        return changes


def setting_name(precision: str, memory: str) -> str:
    """Return a setting's name; the memory mode is omitted if it is the config's."""
    return precision + (f", {memory}" if memory != "config" else "")
