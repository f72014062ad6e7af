"""The named choices of the method. This file imports no torch, so that options can use it."""

from typing import Literal, get_args

Noise = Literal["fresh", "fixed", "ddim"]
"""The noise z_i of the steps after the first: new, that of the first step, or the implied one."""

StepTraining = Literal["all", "last"]
"""The steps of the generator that gradients flow through."""

Objective = Literal["sid", "dmd"]
"""The generator's loss: score identity distillation, or distribution matching for comparison."""

Weighting = Literal[
    "sid",
    "sid_legacy",
    "1_minus_sigma",
    "1_minus_sigma_squared",
    "1_over_sigma",
    "1_over_sigma2",
    "snr_sqrt",
    "snr",
]
WEIGHTINGS: tuple[str, ...] = get_args(Weighting)
