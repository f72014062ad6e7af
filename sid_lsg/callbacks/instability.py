"""Detect losses, gradients and updates that a healthy run does not have."""

import math
from collections import deque
from collections.abc import Mapping
from statistics import median

from torch import Tensor

_RATIOS = ("update_ratio_fake", "update_ratio_generator")
_SIZES = ("loss_fake", "loss_generator", "grad_norm_fake", "grad_norm_generator", *_RATIOS)
_SHARES = {"skipped_samples": "samples", "nonfinite_gradients": "gradients' entries"}
# The median of so many newest values is judged: one bad batch or one overflow of a GradScaler is
# not a failure.
RECENT = 3
BASELINE = 5  # minimal number of earlier values for a comparison


class Instability:
    """Compare logged values with earlier ones and with absolute limits.

    The size of a value is |x|, since the generator's loss has both signs and a mean near zero.
    The usual size is the median of the earlier ones, which is robust to outliers. The median of the
    newest three values is compared with it.
    """

    def __init__(self, spike: float, update_ratio: float, nonfinite: float, window: int) -> None:
        """Set the limits.

        Args:
            spike: Limit of a size, as a multiple of the usual size.
            update_ratio: Limit of ||dw|| / ||w|| of a step. One value is enough, because a learning
                rate that is far too large shows in the first step.
            nonfinite: Limit of the share of samples, and of gradient entries, that are not finite.
            window: Number of earlier values whose median is the usual size.
        """
        self.spike, self.update_ratio, self.nonfinite = spike, update_ratio, nonfinite
        self._past = {name: deque[float](maxlen=window + RECENT) for name in (*_SIZES, *_SHARES)}

    def past(self) -> dict[str, list[float]]:
        """Return the values so far."""
        return {name: list(values) for name, values in self._past.items()}

    def recall(self, past: Mapping[str, list[float]]) -> None:
        """Restore the values of the run that is continued."""
        for name, values in self._past.items():
            values.extend(past.get(name, ()))

    def judge(self, metrics: Mapping[str, Tensor], batch_size: int, phases: int = 2) -> str:
        """Add the logged values of an iteration, and judge them.

        Args:
            metrics: The logged values.
            batch_size: Samples per phase, over all ranks and all iterations since the last call.
            phases: Steps of both networks per iteration.

        Returns:
            What is wrong, with numbers; "" for a healthy run.
        """
        values = {name: abs(float(metrics[name])) for name in self._past}
        values["skipped_samples"] /= phases * batch_size  # those of all phases are counted
        wrong = [
            f"{name} is {values[name]:.3g} (limit {self.update_ratio:g})"
            for name in _RATIOS
            if not values[name] <= self.update_ratio  # NaN is wrong too
        ]
        for name, value in values.items():
            past = self._past[name]
            past.append(math.inf if math.isnan(value) else value)
            earlier, now = list(past)[:-RECENT], median(list(past)[-RECENT:])
            if name in _SHARES:
                if len(past) >= RECENT and now > self.nonfinite:
                    limit = f"limit {self.nonfinite:.1%}"
                    wrong.append(f"{now:.1%} of the {_SHARES[name]} are not finite ({limit})")
            elif len(earlier) >= BASELINE and now > self.spike * (usual := median(earlier)) > 0:
                limit = f"limit {self.spike:g} times that"
                wrong.append(f"{name} is {now:.3g} in size, usually {usual:.3g} ({limit})")
        return "; ".join(wrong)
