"""The part of a run's options that decides its costs, and its networks on the meta device."""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from sid_lsg.costs.evaluation import Evaluation, Gradient, evaluation
from sid_lsg.method.guidance import Kappas
from sid_lsg.networks.lora import adapt, copy_trainable
from sid_lsg.networks.memory import (
    EMADevice,
    FrozenPrecision,
    Memory,
    checkpoint_gradients,
    recomputed,
    set_frozen_precision,
)
from sid_lsg.optimizers.adam import AdamWithoutMomentum
from sid_lsg.options.lora import LoRA
from sid_lsg.teachers.base import Teacher
from sid_lsg.training.optimizer_options import MakeOptimizer


@dataclass(frozen=True)
class Plan:
    """What of a run's options decides its costs; the names are the options'.

    Attributes:
        own_bases: Networks that start with weights of their own, which adapters do not share.
        devices: On all machines together; they divide the batch.
        pictures: Most images that are sampled and decoded at a time.
        real_data: Whether phase 1 evaluates the fake score on real images too.
    """

    kappas: Kappas
    batch_size: int
    micro_batch_size: int
    num_steps: int = 1
    optimizer_fake: MakeOptimizer = AdamWithoutMomentum
    optimizer_generator: MakeOptimizer = AdamWithoutMomentum
    lora_fake_score: LoRA | None = None
    lora_generator: LoRA | None = None
    own_bases: frozenset[str] = frozenset()
    frozen_precision: FrozenPrecision = "32"
    gradient_checkpointing: tuple[str, ...] = ()
    memory: Memory = "fast"
    compile: bool = False
    ema_device: EMADevice | None = None
    precision: str = "32-true"
    tf32: bool = False
    strategy: str = "auto"
    devices: int = 1
    pictures: int = 0
    real_data: bool = False

    @property
    def share(self) -> int:
        """Images of an iteration on one device."""
        return self.batch_size // self.devices

    @property
    def sharded(self) -> bool:
        """Whether weights, gradients and optimizers are spread over the devices."""
        return "fsdp2" in self.strategy.lower()

    @property
    def half(self) -> torch.dtype | None:
        """The type of products in mixed precision."""
        return {"bf16": torch.bfloat16, "16-m": torch.float16}.get(self.precision[:4])

    @property
    def frozen_half(self) -> torch.dtype | None:
        """The type of the teacher's products, where it is stored so."""
        return torch.bfloat16 if self.frozen_precision == "bf16" else None


class PlannedRun:
    """A plan's networks, which have shapes and no numbers."""

    def __init__(
        self, plan: Plan, teacher: Teacher, known: dict[Any, Evaluation] | None = None
    ) -> None:
        """Make the networks, as `SiDLSG` does.

        Args:
            plan: The plan.
            teacher: Its teacher, on the meta device; it is left as it is.
            known: What other plans for this teacher have counted, to which this one adds.
        """
        self.plan, self.teacher = plan, copy.deepcopy(teacher)
        self.known = {} if known is None else known
        self.tokens = next(iter(self.teacher.null_condition().values())).shape[1]
        self.fake_score = self._start("fake_score", plan.lora_fake_score)
        self.generator = self._start("generator", plan.lora_generator)
        self.ema = copy_trainable(self.generator)
        trained = {"fake_score": self.fake_score, "generator": self.generator}
        checkpointed = trained | {"teacher": self.teacher.network}
        checkpoint_gradients(checkpointed, plan.gradient_checkpointing)
        set_frozen_precision(plan.frozen_precision, self.teacher, *trained.values())

    def _start(self, name: str, lora: LoRA | None) -> nn.Module:
        network = self.teacher.network
        if not lora or name in self.plan.own_bases:
            network = copy.deepcopy(network)
        return adapt(network, lora, 0) if lora else network.requires_grad_(True)

    def network(self, name: str) -> nn.Module:
        """Return `teacher`, `fake_score` or `generator`."""
        network: nn.Module = self.teacher.network if name == "teacher" else getattr(self, name)
        return network

    def evaluation(self, name: str, gradient: Gradient) -> Evaluation:
        """Count an evaluation of `teacher`, `fake_score` or `generator`."""
        plan, network = self.plan, self.network(name)
        half, dtype = plan.half, next(network.parameters()).dtype
        lora = repr(getattr(plan, f"lora_{name}", None))
        if dtype == plan.frozen_half:
            half = dtype
        elif plan.sharded and half:  # FSDP2 gathers weights in this type: no autocast
            dtype, half = half, None
        key = (gradient, half, dtype, lora, name in plan.gradient_checkpointing)
        if key not in self.known:
            teacher = self.teacher
            if dtype != next(network.parameters()).dtype:
                network, teacher = copy.deepcopy(network).to(dtype), copy.copy(teacher)
                teacher.products_in = None  # all of the network is in this type
            self.known[key] = evaluation(teacher, network, gradient, half)
        return self.known[key]

    def evaluated(self, name: str) -> int:
        """Return how often phase 2 evaluates `teacher` or `generator` forward: once, or again."""
        return 1 + (name in recomputed(self.plan.memory))

    def encode(self, prompts: int) -> None:
        """Encode so many prompts."""
        ids = torch.empty(prompts, self.tokens, dtype=torch.long, device="meta")
        self.teacher.encode({"input_ids": ids})
