"""Learning-rate schedules, whose values depend on the iteration alone."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau

from sid_lsg.messages.errors import UsageError
from sid_lsg.training.optimizer_options import MakeOptimizer, make_optimizer

MakeSchedule = Callable[[Optimizer], LRScheduler | ReduceLROnPlateau]


def make_schedule(make: MakeSchedule | None, optimizer: Optimizer, name: str) -> LRScheduler:
    """Create a schedule; a constant one if `make` is None.

    Args:
        make: The factory.
        optimizer: The optimizer.
        name: Name of the option that chose the schedule, for error messages.

    Raises:
        UsageError: If the schedule cannot be created, or follows a metric.
    """
    if make is None:
        return LambdaLR(optimizer, _constant)
    try:
        made = make(optimizer)
    except UsageError:
        raise
    except (ValueError, TypeError, RuntimeError, KeyError) as error:
        raise UsageError(
            f"--{name}: this schedule cannot be created ({error}). Change --{name}.init_args, or "
            "give another class_path."
        ) from error
    if not isinstance(made, LRScheduler) or isinstance(made, ReduceLROnPlateau):
        raise UsageError(
            f"--{name}: {type(made).__name__} does not depend on the iteration alone. Give another "
            "class_path, for example sid_lsg.optimizers.WarmUp."
        )
    return made


def continue_schedule(
    schedule: LRScheduler,
    make: MakeSchedule | None,
    optimizer: MakeOptimizer,
    iterations: int,
    name: str,
) -> None:
    """Set a schedule and its optimizer to a number of finished iterations.

    The schedule of this run is run through from its start, so that options that differ from the
    checkpoint's have an effect. The learning rates are the same to the bit otherwise.

    Args:
        schedule: The schedule.
        make: Its factory.
        optimizer: The factory of its optimizer.
        iterations: Finished iterations.
        name: Name of the option that chose the schedule, for error messages.
    """
    stand_in = make_optimizer(optimizer, [nn.Parameter(torch.zeros(1, 1))], name)
    fresh = make_schedule(make, stand_in, name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the stand-in takes no steps
        for _ in range(iterations):
            fresh.step()
    schedule.load_state_dict(fresh.state_dict())
    own: Any = schedule.optimizer
    (group,) = stand_in.param_groups
    for other in own.param_groups:
        other.update({key: value for key, value in group.items() if key != "params"})


def _constant(iteration: int) -> float:
    return 1.0
