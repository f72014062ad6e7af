"""Read the options of `fit` that decide a run's costs, and list options that would change them."""

from typing import Any

import torch
from torch import nn

from sid_lsg.costs.plan import Plan
from sid_lsg.messages.errors import UsageError
from sid_lsg.method.guidance import Guiding
from sid_lsg.optimizers.adam import AdamWithoutMomentum
from sid_lsg.options.guidance import Guidance
from sid_lsg.options.method import Method
from sid_lsg.options.text import Text
from sid_lsg.options.training import CHECKPOINTED, EMA, Adapters, Compute, InitialWeights, Memory
from sid_lsg.training.optimizer_options import check_steps, optimizers_of


def plan_of(config: Any, gpus: int | None = None) -> Plan:
    """Return the plan of a run from the options of `fit`.

    Raises:
        UsageError: If one of the method's numbers is out of range, an optimizer fails to step, or
            the batch is not divisible by the devices and the micro-batch.
    """
    model, trainer = config.model, config.trainer
    method = Method.of(model)
    optimizers = optimizers_of(model)
    check_steps(optimizers, torch.device("cpu"))  # optimizer_bytes measures them on the CPU
    devices = gpus or _devices(trainer.devices) * int(trainer.num_nodes or 1)
    batch = config.data.batch_size
    if batch < 1:
        raise UsageError(f"--data.batch_size is {batch}; it must be 1 or more.")
    if devices < 1 or batch % devices:
        raise UsageError(
            f"--estimate.gpus: {devices} device(s) do not divide --data.batch_size {batch}. Change "
            "one of them."
        )
    micro = min(method.micro_batch_size or batch // devices, batch // devices)
    if batch // devices % micro:
        raise UsageError(
            f"--model.micro_batch_size: {micro} does not divide the {batch // devices} prompts of "
            "each device. Change it, or --data.batch_size."
        )
    strategy = trainer.strategy
    strategy = strategy if isinstance(strategy, str) else strategy.class_path.rpartition(".")[2]
    guidance = Guidance(**model.guidance.as_dict())
    return Plan(
        kappas=guidance.kappas,
        guiding=Guiding(guidance.true_cfg, guidance.embedded),
        batch_size=batch,
        micro_batch_size=micro,
        num_steps=method.num_steps,
        step_training=method.step_training,
        fake_steps=method.fake_steps,
        objective=method.objective,
        optimizer_fake=optimizers["model.optimizer_fake"],
        optimizer_generator=optimizers["model.optimizer_generator"],
        lora=Adapters.of(model.lora.as_dict()),
        init=InitialWeights(**model.init.as_dict()),
        memory=Memory(**model.memory.as_dict()),
        ema=EMA(**model.ema.as_dict()),
        text=Text(**model.text.as_dict()),
        compute=Compute(**model.compute.as_dict()),
        precision=str(trainer.precision or "32-true"),
        strategy=strategy,
        devices=devices,
        images_at_once=_images_at_once(config),
        real_data=model.real_data is not None,
    )


def _devices(asked: Any) -> int:
    """Return the number of devices that --trainer.devices requests, possibly as text."""
    if isinstance(asked, str) and "," in asked:
        asked = [part for part in asked.split(",") if part.strip()]
    if isinstance(asked, list | tuple):
        return len(asked)
    if asked in (None, "auto"):
        return 1
    try:
        number = int(asked)
    except ValueError:
        number = -1
    if number < 0:
        raise UsageError(
            f"--trainer.devices: {asked!r} does not tell the number of devices. Give "
            "--estimate.gpus."
        )
    return number


def _images_at_once(config: Any) -> int:
    """Return the largest number of images decoded at a time during training."""
    grid, metrics, health = config.image_grid, config.metrics, config.health
    scored = metrics.clip or metrics.protocol == "clean256"
    return max(
        grid.num_images if grid.every_n_steps else 0,
        metrics.batch_size if scored else 0,
        health.batch_size if metrics.clip and health.every_n_images else 0,
    )


def levers(plan: Plan, checkpointing: bool = True) -> dict[str, dict[str, Any]]:
    """Return options that would change the costs, as typed by a user, with the plan's changes.

    Args:
        plan: The run.
        checkpointing: Whether the teacher's networks support activation checkpointing.
    """
    found: dict[str, dict[str, Any]] = {}
    if plan.half is None:
        found["--trainer.precision bf16-mixed"] = {"precision": "bf16-mixed"}
        if not plan.compute.tf32:
            found["--model.compute.tf32 true"] = {"compute.tf32": True}
    if not (plan.compute.compile or plan.sharded):
        found["--model.compute.compile true"] = {"compute.compile": True}
    if plan.memory.activations != "lean":
        found["--model.memory.activations lean"] = {"memory.activations": "lean"}
    if checkpointing and set(plan.checkpointing) != set(CHECKPOINTED):
        option = f'--model.memory.checkpointing "[{", ".join(CHECKPOINTED)}]"'
        found[option] = {"memory.checkpointing": [*CHECKPOINTED]}
    optimizers = {"optimizer_fake": plan.optimizer_fake}
    optimizers |= {"optimizer_generator": plan.optimizer_generator}
    made = [make([nn.Parameter(torch.zeros(1, 1))]) for make in optimizers.values()]
    if all(map(_stores_gradients, made)):
        option = f"class_path: sid_lsg.optimizers.{AdamWithoutMomentum.__name__} (both optimizers)"
        found[option] = dict.fromkeys(optimizers, AdamWithoutMomentum)
    if plan.memory.frozen_precision != "bf16":
        found["--model.memory.frozen_precision bf16"] = {"memory.frozen_precision": "bf16"}
    if not (plan.ema.device or plan.sharded or plan.lora.generator):
        found["--model.ema.device cpu"] = {"ema.device": "cpu"}
    if plan.devices > 1 and not plan.sharded:
        found["--trainer.strategy fsdp2"] = {"strategy": "fsdp2", "ema.device": None}
    return found


def _stores_gradients(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether an optimizer is Adam with beta_1 = 0, whose first moment is the gradient."""
    return type(optimizer) is torch.optim.Adam and optimizer.defaults["betas"][0] == 0
