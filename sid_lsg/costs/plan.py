"""The options that decide a run's costs, and the run's networks on the meta device."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import nn

from sid_lsg.costs.evaluation import Evaluation, Gradient, evaluation
from sid_lsg.method.choices import Objective, StepTraining
from sid_lsg.method.guidance import Guiding, Kappas
from sid_lsg.networks.adapted import Adapted
from sid_lsg.networks.buffers import copied
from sid_lsg.networks.lora import adapt, copy_trainable
from sid_lsg.networks.memory import (
    checkpoint_gradients,
    set_frozen_precision,
    set_text,
)
from sid_lsg.optimizers.adam import AdamWithoutMomentum
from sid_lsg.options.lora import LoRA
from sid_lsg.options.text import Text
from sid_lsg.options.training import EMA, Adapters, Compute, InitialWeights, Memory
from sid_lsg.teachers.base import Teacher
from sid_lsg.teachers.precision import backbone, linear_layers, set_autocast
from sid_lsg.training.optimizer_options import MakeOptimizer


@dataclass(frozen=True)
class Plan:
    """The options that decide a run's costs, under the names of the options of `fit`.

    Attributes:
        step_training: The generator's steps that gradients flow through; by default the teacher's.
        fake_steps: Optimizer steps of the fake score per iteration.
        objective: The generator's loss.
        devices: Number of devices on all machines; divides the batch.
        images_at_once: Largest number of images sampled and decoded at a time.
        real_data: Whether phase 1 also runs the fake score on real images.
        guiding: How a teacher with a guidance embedding is guided.
    """

    kappas: Kappas
    batch_size: int
    micro_batch_size: int
    num_steps: int = 1
    step_training: StepTraining | None = None
    fake_steps: int = 1
    objective: Objective = "sid"
    optimizer_fake: MakeOptimizer = AdamWithoutMomentum
    optimizer_generator: MakeOptimizer = AdamWithoutMomentum
    init: InitialWeights = field(default_factory=InitialWeights)
    lora: Adapters = field(default_factory=Adapters)
    memory: Memory = field(default_factory=Memory)
    ema: EMA = field(default_factory=EMA)
    text: Text = field(default_factory=Text)
    compute: Compute = field(default_factory=Compute)
    precision: str = "32-true"
    strategy: str = "auto"
    devices: int = 1
    images_at_once: int = 0
    real_data: bool = False
    guiding: Guiding = field(default_factory=Guiding)

    def changed(self, changes: Mapping[str, Any]) -> "Plan":
        """Return a plan with other options, by their dotted names."""
        groups: dict[str, Any] = {}
        for name, value in changes.items():
            group, dot, option = name.partition(".")
            before = groups.get(group, getattr(self, group))
            groups[group] = replace(before, **{option: value}) if dot else value
        return replace(self, **groups)

    @property
    def checkpointing(self) -> tuple[str, ...]:
        """The networks that use activation checkpointing."""
        return tuple(self.memory.checkpointing or ())

    @property
    def share(self) -> int:
        """Images per iteration on one device."""
        return self.batch_size // self.devices

    @property
    def sharded(self) -> bool:
        """True if weights, gradients and optimizer states are sharded over the devices."""
        return "fsdp2" in self.strategy.lower()

    @property
    def half(self) -> torch.dtype | None:
        """The 16-bit dtype of mixed precision, if any."""
        return {"bf16": torch.bfloat16, "16-m": torch.float16}.get(self.precision[:4])

    @property
    def frozen_half(self) -> torch.dtype | None:
        """The 16-bit dtype of the teacher's linear and convolution weights, if any."""
        return torch.bfloat16 if self.memory.frozen_precision == "bf16" else None


class _Networks(NamedTuple):
    """A run's networks on the meta device."""

    teacher: Teacher
    fake_score: nn.Module
    generator: nn.Module
    ema: nn.Module


def _build(plan: Plan, teacher: Teacher) -> _Networks:
    """Build the networks as `SiDLSG` does."""
    teacher = copy.deepcopy(teacher)
    # 8-bit weights are counted in `costs.memory`: the meta device cannot compute with them.
    eight = plan.text.precision == "int8"
    set_text(replace(plan.text, precision="bf16") if eight else plan.text, teacher)
    if plan.text.device:
        teacher.keep_text_apart()

    def start(name: str, lora: LoRA | None) -> nn.Module:
        network = teacher.network
        if not lora or getattr(plan.init, name):  # adapters share the teacher's weights
            network = copied(network)
        return adapt(network, lora, 0) if lora else network.requires_grad_(True)

    trained = {name: start(name, getattr(plan.lora, name)) for name in ("fake_score", "generator")}
    ema = copy_trainable(trained["generator"])
    checkpoint_gradients(trained | {"teacher": teacher.network}, plan.checkpointing)
    set_frozen_precision(plan.memory.frozen_precision, teacher, *trained.values())
    return _Networks(teacher, **trained, ema=ema)


class PlannedRun:
    """A plan with its networks on the meta device."""

    def __init__(self, plan: Plan, teacher: Teacher, known: dict[Any, Any] | None = None) -> None:
        """Build the networks, or take those of a plan that differs in other options.

        Args:
            plan: The plan.
            teacher: Its teacher, on the meta device; not modified.
            known: Cache of networks and counted passes, shared by the plans for this teacher.
        """
        self.plan = plan
        self.known: dict[Any, Any] = {} if known is None else known
        chosen = plan.text, plan.lora, plan.init, plan.checkpointing, plan.memory.frozen_precision
        if (key := repr(chosen)) not in self.known:
            self.known[key] = _build(plan, teacher)
        self.teacher, self.fake_score, self.generator, self.ema = self.known[key]

    @property
    def evaluations(self) -> tuple[int, int, int]:
        """Return the NFE per sample of the fake score in both phases, and of the teacher."""
        embeds = self.teacher.embeds_guidance
        return self.plan.kappas.evaluations_of(self.plan.guiding if embeds else None)

    @property
    def steps(self) -> float:
        """Return the mean number of the generator's evaluations in a phase."""
        return (1 + self.plan.num_steps) / 2 if self.only_last else self.plan.num_steps

    @property
    def steps_with_gradient(self) -> int:
        """Return the number of the generator's steps that gradients flow through."""
        return 1 if self.only_last else self.plan.num_steps

    @property
    def only_last(self) -> bool:
        """True if gradients flow through the generator's last step alone."""
        own = self.teacher.schedule.defaults.step_training
        return (self.plan.step_training or own) == "last"

    def network(self, name: str) -> nn.Module:
        """Return the network `teacher`, `fake_score` or `generator`."""
        network: nn.Module = self.teacher.network if name == "teacher" else getattr(self, name)
        return network

    @property
    def through_networks(self) -> Gradient:
        """Return what phase 2 differentiates the fake score and the teacher for."""
        return "inputs" if self.plan.objective == "sid" else "none"

    def evaluation(self, name: str, gradient: Gradient) -> Evaluation:
        """Count a forward and backward pass of `teacher`, `fake_score` or `generator`."""
        plan, network = self.plan, self.network(name)
        half, dtype = plan.half, next(linear_layers(backbone(network))).weight.dtype
        lora = repr(getattr(plan.lora, name, None))
        if dtype == plan.frozen_half:
            half = dtype
        elif plan.sharded and half:  # FSDP2 gathers weights in this dtype
            dtype = half
        key = (gradient, half, dtype, lora, name in plan.checkpointing)
        if key not in self.known:
            teacher: Teacher = self.teacher
            if dtype != next(linear_layers(backbone(network))).weight.dtype:
                # `nn.Module.to`, because diffusers' `to` gives a warning that does not apply here.
                converted = nn.Module.to(copy.deepcopy(backbone(network)), dtype)
                if isinstance(network, Adapted):
                    converted = network.on_base(converted)
                network = converted
                set_autocast(network, half)
            self.known[key] = evaluation(teacher, network, gradient, half)
        found: Evaluation = self.known[key]
        return found

    def evaluated(self, name: str) -> int:
        """Return the forward passes of `teacher` or `generator` in phase 2: 2 if recomputed."""
        kept = name == "teacher" and self.through_networks == "none"
        return 1 + (name in self.plan.memory.recomputed and not kept)

    def encode(self, prompts: int) -> None:
        """Encode a number of prompts."""
        tokens = {
            name: torch.empty(prompts, *one.shape[1:], dtype=one.dtype, device="meta")
            for name, one in self.teacher.tokenize([""]).items()
        }
        self.teacher.condition_on(tokens)
