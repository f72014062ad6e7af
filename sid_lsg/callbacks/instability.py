"""When a run's losses, gradients and steps are no longer those of a healthy run."""

import math
from collections import deque
from collections.abc import Mapping
from statistics import median

from torch import Tensor

_RATIOS = ("update_ratio_fake", "update_ratio_generator")
_SIZES = ("loss_fake", "loss_generator", "grad_norm_fake", "grad_norm_generator", *_RATIOS)
_SHARES = {"skipped_samples": "samples", "nonfinite_gradients": "gradients' entries"}
RECENT = 3  # logged values whose median is judged: one odd batch, or a GradScaler's one overflow
# in two thousand steps, is no failure
BASELINE = 5  # earlier logged values without which there is nothing to compare with


class Instability:
    """Compares logged values with their own past, and with absolute limits.

    A value's size is |x|: the generator's loss has either sign, and a mean that may be near zero.
    Its usual size is the median of the earlier ones, which a few outliers do not move. It is judged
    by the median of the newest three.
    """

    def __init__(self, spike: float, update_ratio: float, nonfinite: float, window: int) -> None:
        """Set the limits.

        Args:
            spike: Of a size, as a multiple of the usual one.
            update_ratio: Of a step, ||dw|| / ||w||. One value suffices, for a learning rate that is
                far too large is wrong from the first step on, before there is any past.
            nonfinite: Of the share of samples and of gradients' entries that are not finite.
            window: How many earlier values the usual size is the median of.
        """
        self.spike, self.update_ratio, self.nonfinite = spike, update_ratio, nonfinite
        self._past = {name: deque[float](maxlen=window + RECENT) for name in (*_SIZES, *_SHARES)}

    def past(self) -> dict[str, list[float]]:
        """Return the values that have been taken in."""
        return {name: list(values) for name, values in self._past.items()}

    def recall(self, past: Mapping[str, list[float]]) -> None:
        """Take in the values of the run that is continued."""
        for name, values in self._past.items():
            values.extend(past.get(name, ()))

    def judge(self, metrics: Mapping[str, Tensor], batch_size: int) -> str:
        """Take in one iteration's logged values.

        Args:
            metrics: What `SiDLSG` logs, among others.
            batch_size: Samples per phase, over all ranks and all iterations since the last call.

        Returns:
            What is wrong, with numbers; empty for nothing.
        """
        values = {name: abs(float(metrics[name])) for name in self._past}
        values["skipped_samples"] /= 2 * batch_size  # both phases' are counted
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
