"""Create optimizers, and validate their options before anything of a run is written."""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from lightning.pytorch.cli import instantiate_class
from torch import nn
from torch.optim import Optimizer

from sid_lsg.messages.errors import UsageError
from sid_lsg.training.strategies import FSDP2Strategy

MakeOptimizer = Callable[[Iterable[Any]], Optimizer]

_PLAIN = "bitsandbytes"  # a package whose operators reject DTensors


def optimizers_of(model: Any) -> dict[str, MakeOptimizer]:
    """Return the factories of the optimizers, by the names of their options.

    Args:
        model: The configuration's `model` section.
    """
    names = ("optimizer_fake", "optimizer_generator")
    return {
        f"model.{name}": partial(instantiate_class, init=model[name].as_dict()) for name in names
    }


def make_optimizer(make: MakeOptimizer, parameters: Sequence[nn.Parameter], name: str) -> Optimizer:
    """Create an optimizer of a network's parameters.

    Args:
        make: The factory.
        parameters: The parameters to train.
        name: Name of the option that chose the optimizer, for error messages.

    Raises:
        UsageError: If the optimizer cannot be created.
    """
    try:
        made = make(parameters)
        _check_pairs(made)
    except UsageError:
        raise
    except (ValueError, TypeError, RuntimeError) as error:
        raise UsageError(
            f"--{name}: this optimizer cannot be created ({error}). It keeps the options that its "
            "class shares with the config's class. Change them in "
            f"--{name}.init_args, or give another --{name}.class_path."
        ) from error
    return made


def check_steps(makes: Mapping[str, MakeOptimizer], device: torch.device) -> None:
    """Reject optimizers whose step fails, such as LBFGS (needs a closure) and SparseAdam.

    Args:
        makes: The factories, by the names of their options.
        device: Device of the tried step; some optimizers cannot step on a CPU.

    Raises:
        UsageError: If an optimizer cannot be created, or its step fails.
    """
    for name, make in makes.items():
        weight = nn.Parameter(torch.zeros(2, 2, device=device))
        optimizer = make_optimizer(make, [weight], name)
        weight.grad = torch.ones_like(weight)
        # bitsandbytes synchronizes the current device; without this, every process would allocate
        # memory on the first one.
        chosen = torch.cuda.device(device) if device.type == "cuda" else nullcontext()
        try:
            with chosen:
                optimizer.step()
        except Exception as error:  # third-party code may raise anything
            raise UsageError(
                f"--{name}: {type(optimizer).__name__} fails in its first step on {device} "
                f"({error}). Choose another --{name}.class_path."
            ) from error


def _check_pairs(optimizer: Optimizer) -> None:
    """Reject a single number for an option with several values, such as some Adafactors' eps."""
    for name, parameter in inspect.signature(type(optimizer)).parameters.items():
        value, default = optimizer.defaults.get(name), parameter.default
        if isinstance(default, tuple) and isinstance(value, int | float):
            raise ValueError(f"{name} must be {len(default)} values such as {[*default]}: {value}")


def check_shards(optimizers: Iterable[Optimizer], strategy: Any) -> None:
    """Reject optimizers that cannot train sharded weights, if the strategy shards.

    Raises:
        UsageError: If there is such an optimizer.
    """
    for optimizer in optimizers if isinstance(strategy, FSDP2Strategy) else ():
        kind = type(optimizer)
        if any(base.__module__.startswith(_PLAIN) for base in kind.__mro__):
            raise UsageError(
                f"--trainer.strategy fsdp2 shards the weights, which {kind.__name__} does not "
                "support. Choose ddp_multi, or "
                "--model.optimizer_*.class_path sid_lsg.optimizers.AdamWithoutMomentum."
            )
