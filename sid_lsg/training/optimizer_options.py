"""Whether optimizers can be what their options say: told before anything of a run is written."""

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

_PLAIN = "bitsandbytes"  # its operators take no DTensors


def optimizers_of(model: Any) -> dict[str, MakeOptimizer]:
    """Return what makes the optimizers, by their options' names.

    Args:
        model: The configuration's `model` section.
    """
    names = ("optimizer_fake", "optimizer_generator")
    return {
        f"model.{name}": partial(instantiate_class, init=model[name].as_dict()) for name in names
    }


def make_optimizer(make: MakeOptimizer, parameters: Sequence[nn.Parameter], name: str) -> Optimizer:
    """Make an optimizer of a network's parameters.

    Args:
        make: What makes it.
        parameters: What it is to train.
        name: The option that says how, for messages.

    Raises:
        UsageError: If it cannot be made.
    """
    try:
        made = make(parameters)
        _check_pairs(made)
    except UsageError:
        raise
    except (ValueError, TypeError, RuntimeError) as error:
        raise UsageError(
            f"--{name}: this optimizer cannot be made ({error}). Options that it shares with the "
            f"class that a config names are kept: give its own, or another --{name}.class_path."
        ) from error
    return made


def check_steps(makes: Mapping[str, MakeOptimizer], device: torch.device) -> None:
    """Refuse optimizers that cannot take a step alone, as LBFGS, or only a sparse one.

    Args:
        makes: What makes them, by their options' names.
        device: Where to try a step, with a weight of its own: some can take none on a CPU.

    Raises:
        UsageError: If one cannot be made, or its step fails.
    """
    for name, make in makes.items():
        weight = nn.Parameter(torch.zeros(2, 2, device=device))
        optimizer = make_optimizer(make, [weight], name)
        weight.grad = torch.ones_like(weight)
        # bitsandbytes waits for the current device: each process would hold some of the first one.
        chosen = torch.cuda.device(device) if device.type == "cuda" else nullcontext()
        try:
            with chosen:
                optimizer.step()
        except Exception as error:  # of any class: it is anyone's code
            raise UsageError(
                f"--{name}: {type(optimizer).__name__} fails in its first step on {device} "
                f"({error}). Choose another --{name}.class_path."
            ) from error


def _check_pairs(optimizer: Optimizer) -> None:
    """Refuse a number where a class without types wants several, as some Adafactors' eps."""
    for name, parameter in inspect.signature(type(optimizer)).parameters.items():
        value, default = optimizer.defaults.get(name), parameter.default
        if isinstance(default, tuple) and isinstance(value, int | float):
            raise ValueError(f"{name} must be {len(default)} values such as {[*default]}: {value}")


def check_shards(optimizers: Iterable[Optimizer], strategy: Any) -> None:
    """Refuse optimizers that cannot train a share of each weight.

    Raises:
        UsageError: If the strategy shards, and there is one.
    """
    for optimizer in optimizers if isinstance(strategy, FSDP2Strategy) else ():
        kind = type(optimizer)
        if any(base.__module__.startswith(_PLAIN) for base in kind.__mro__):
            raise UsageError(
                f"--trainer.strategy fsdp2 spreads weights over the devices, which {kind.__name__} "
                "cannot train. Choose ddp_multi, or "
                "--model.optimizer_*.class_path sid_lsg.optimizers.AdamWithoutMomentum."
            )
