"""Track the best value of a metric."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import lightning as L
from lightning.pytorch.utilities import rank_zero_warn

from sid_lsg.files.replacing import replacing
from sid_lsg.messages.errors import UsageError
from sid_lsg.training.callback import Scorer, find

Mode = Literal["min", "max"]
_FILE = "best.json"


class Best:
    """The best value so far of a metric, and its iteration."""

    def __init__(self, metric: str, mode: Mode) -> None:
        self.metric, self.mode = metric, mode
        self.value, self.step = math.nan, 0
        self._judged: Mapping[str, float] = {}  # the newest scores that were compared
        self._warned = False

    def setup(self, trainer: L.Trainer) -> None:
        """Find the callback that scores.

        Raises:
            UsageError: If there is none.
        """
        self._scorer = find(trainer, Scorer)
        if self._scorer is None or not self._scorer.measures:
            raise UsageError(
                f"--checkpoint.best: {self.metric!r} is never computed, since nothing is scored. "
                "Give --metrics.clip and --metrics.every_n_images, or leave the option out."
            )

    def judge(self, trainer: L.Trainer) -> bool:
        """Return True if there are new scores and they are the best so far. For all ranks."""
        assert self._scorer is not None
        scores = self._scorer.latest
        if not scores or scores is self._judged:
            return False
        self._judged = scores
        if self.metric not in scores:
            if not self._warned:
                known = ", ".join(sorted(scores))
                rank_zero_warn(
                    f"--checkpoint.best: there is no metric {self.metric!r}, so no best.ckpt is "
                    f"kept. Choose one of {known}."
                )
            self._warned = True
            return False
        # Values may differ by rounding between ranks, which must take the same decision.
        value = float(trainer.strategy.broadcast(scores[self.metric]))
        better = value < self.value if self.mode == "min" else value > self.value
        if better or (math.isnan(self.value) and not math.isnan(value)):
            self.value, self.step = value, trainer.global_step
            return True
        return False

    def state_dict(self) -> dict[str, Any]:
        """Return the metric, its best value and the iteration."""
        return {"metric": self.metric, "value": self.value, "step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the best value, if it is of the same metric."""
        if state.get("metric") == self.metric:
            self.value, self.step = float(state["value"]), int(state["step"])

    def save(self, folder: Path) -> None:
        """Write the value beside best.ckpt: the last checkpoint is older than the final scores."""
        with replacing(folder / _FILE) as temporary:
            temporary.write_text(json.dumps(self.state_dict()) + "\n")

    def recall(self, folder: Path, step: int) -> None:
        """Restore the value that `save` wrote, unless it is of a later iteration than `step`."""
        try:
            noted = json.loads((folder / _FILE).read_text())
            if int(noted["step"]) <= step:
                self.load_state_dict(noted)
        except (OSError, ValueError, KeyError, TypeError):  # missing, or not valid
            return
