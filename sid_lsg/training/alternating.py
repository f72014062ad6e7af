"""A LightningModule that trains several networks in turn, independent of the method.

Optimization is manual. Gradients are reduced once per phase, for the network that the phase trains.
Samples whose loss is not finite are excluded. An iteration of all phases counts as one step.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sid_lsg.checkpoints.resume import ELEMENTWISE, check_weights
from sid_lsg.distributed.sharding import is_sharded, match_memory_format, reduce_in_backward
from sid_lsg.method.phases import FakeScoreOutput, GeneratorOutput, PhaseInputs
from sid_lsg.networks.lora import adapters_record, check_adapters_record
from sid_lsg.options.training import Gradients
from sid_lsg.teachers.precision import backbone
from sid_lsg.training.bad_samples import Reading, count, replace_bad
from sid_lsg.training.callback import run_callbacks
from sid_lsg.training.gradients import (
    all_reduce_mean,
    clip_gradients,
    gradient_norm,
    nonfinite_share,
    repair_gradients,
    sample_weights,
    update_ratio,
)
from sid_lsg.training.strategies import FSDP2Strategy
from sid_lsg.training.update import Update

RunPhase = Callable[[PhaseInputs], FakeScoreOutput | GeneratorOutput]
"""A phase's forward pass: maps samples to their losses."""


class AlternatingModule(L.LightningModule):
    """Train networks alternately.

    Attributes:
        micro_batch_size: Samples per forward and backward pass; None for all at once.
        clipping: Options of gradient clipping.
        frozen: Prefixes of the state dict that checkpoints leave out.
    """

    micro_batch_size: int | None = None
    clipping = Gradients()
    frozen: tuple[str, ...] = ()
    _measured = False
    _ended = False  # True once the callbacks' `on_trained` has been called

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.strict_loading = False  # load_state_dict below compares names and shapes
        self.register_state_dict_post_hook(_drop_frozen)

    def remember_options(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        """Store the optimizers' options (learning rates, betas, ...) for `on_train_start`.

        Also make a gradient scaler unscale gradients before they are repaired. A fused optimizer
        would unscale them in its step, and the scaler would never detect an overflow.
        """
        for optimizer in optimizers:
            setattr(optimizer, "_step_supports_amp_scaling", False)  # noqa: B010 (none declares it)
        self._options = [
            [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
            for optimizer in optimizers
        ]

    def on_train_start(self) -> None:
        """Apply this run's memory format and options to the optimizers' loaded states.

        A checkpoint restores the options of the run that wrote it. Without this, a changed learning
        rate would silently have no effect in a resumed run.
        """
        for optimizer, groups in zip(self.trainer.optimizers, self._options, strict=True):
            for weight, state in optimizer.state.items():
                for name, value in state.items():
                    if name in ELEMENTWISE and torch.is_tensor(value):
                        state[name] = match_memory_format(value, weight)
            for group, options in zip(optimizer.param_groups, groups, strict=True):
                found = group | {
                    "lr": group.get("initial_lr", group["lr"])
                }  # not the scheduled one
                for name, value in options.items():
                    if found[name] != value:
                        rank_zero_info(f"{name} was {found[name]} before, and is {value} now.")
                group.update(options)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Let all callbacks evaluate the last iteration, which is saved if it is due."""
        if self.trainer.global_step:
            self._iterated()
        for callback in run_callbacks(self.trainer):
            callback.on_ready(self.trainer)

    def _iterated(self) -> None:
        for callback in run_callbacks(self.trainer):
            callback.on_iterated(self.trainer, self)

    def on_train_end(self) -> None:
        """Call `on_iterated` and `on_trained` of all callbacks, after their `on_train_end`."""
        self._ended = True
        if self.trainer.global_step:
            self._iterated()
        for callback in run_callbacks(self.trainer):
            callback.on_trained(self.trainer, self)

    def on_fit_end(self) -> None:
        """Call `on_train_end` if the run was already complete: Lightning skips the training."""
        if not self._ended:
            self.to(self.trainer.strategy.root_device)
            self.on_train_end()
        self._ended = False  # the module may be trained again

    def teardown(self, stage: str) -> None:
        """Call `on_ended` of all callbacks, after all of their `teardown`."""
        for callback in run_callbacks(self.trainer):
            callback.on_ended(self.trainer)

    def count_steps_of(self, optimizer: Any) -> None:
        """Count only this optimizer's steps.

        `global_step`, `max_steps`, checkpoints and the loggers' x axis then mean iterations.
        Lightning would count the steps of every optimizer.
        """
        for other in self.optimizers():
            if other is not optimizer:
                other._on_before_step = other._on_after_step = _nothing

    def update(
        self,
        inputs: PhaseInputs,
        phase: RunPhase,
        network: nn.Module,
        optimizer: Any,
        measured: bool,
    ) -> Update:
        """Accumulate a phase's gradients over its micro-batches and take one optimizer step.

        Samples whose loss is not finite are excluded. If any rank has one, all ranks run the phase
        again with good samples instead of bad ones. The gradients of the good samples are exact;
        the loss is still divided by the whole batch.

        Args:
            inputs: This rank's share of the batch.
            phase: The phase's forward pass.
            network: The network to update.
            optimizer: Its optimizer.
            measured: Measure the gradients and the step. This takes two passes over the gradients
                and one over the weights, without synchronizing the device.
        """
        losses, numbers, bad = self._accumulate(inputs, phase, network)
        finite = losses.isfinite()
        skipped = int(bad)  # waits for the device: all ranks act on it
        means = {name: values.mean() for name, values in numbers.items()}
        if skipped:
            optimizer.zero_grad()
            losses, numbers, _ = self._accumulate(replace_bad(inputs, finite), phase, network)
            good = finite.sum().clamp(min=1)
            means = {name: values.sum() / good for name, values in numbers.items()}
        parameters = trained_by(optimizer)
        all_reduce_mean(parameters)
        unknown = losses.new_full((), torch.nan)
        self._measured, self._norm, self._nonfinite, ratio = measured, unknown, unknown, unknown
        before = sample_weights(parameters) if measured else None
        optimizer.step()
        optimizer.zero_grad()  # so that only one network's gradients are in memory
        if before is not None:
            ratio = update_ratio(before, sample_weights(parameters), is_sharded(network))
        which = (~finite).nonzero()[:, 0].tolist() if skipped else []
        loss, weight = losses.sum() / inputs.size, means.pop("weight")
        return Update(loss, weight, means, self._norm, skipped, which, self._nonfinite, ratio)

    def _accumulate(
        self, inputs: PhaseInputs, phase: RunPhase, network: nn.Module
    ) -> tuple[Tensor, dict[str, Tensor], Reading]:
        """Backpropagate a phase's loss, micro-batch by micro-batch.

        Returns:
            The loss of every sample, [B]; further numbers, each [B] by name; both are 0 for samples
            that do not count. And the number of losses that are not finite, over all ranks. It is
            copied to the host during the last backward pass, so reading it does not stall the
            device.
        """
        losses = inputs.draws.u.new_zeros(inputs.size)
        numbers: dict[str, Tensor] = defaultdict(partial(torch.zeros_like, losses))
        size = self.micro_batch_size or inputs.size
        for start in range(0, inputs.size, size):
            part = slice(start, start + size)
            samples = inputs.select(part)
            output = phase(samples)
            losses[part] = _counted(output.losses, samples)
            for name, value in {"weight": output.weight, **output.numbers}.items():
                numbers[name][part] = _counted(value, samples)
            last = start + size >= inputs.size
            if last:
                bad = count(~losses.isfinite())
            reduce_in_backward(network, last)
            with self._without_reduction():
                self.manual_backward(output.loss)
        return losses, numbers, bad

    def _without_reduction(self) -> AbstractContextManager[None]:
        """Return a context that disables DistributedDataParallel's reduction of both networks."""
        wrapper = self.trainer.strategy.model
        return wrapper.no_sync() if isinstance(wrapper, DistributedDataParallel) else nullcontext()

    def shard(self, *networks: nn.Module) -> None:
        """Shard networks if the strategy is fsdp2.

        A base that networks with LoRA adapters share is sharded once. Adapters are small, and each
        process holds all of them.
        """
        if isinstance(strategy := self.trainer.strategy, FSDP2Strategy):
            adapters_record(self)  # fingerprints the bases while each process has all weights
            for network in networks:
                strategy.shard(backbone(network))

    def full_parameters(self, network: nn.Module) -> AbstractContextManager[nn.Module]:
        """Return a context that yields a network with full weights on the first rank. Collective.

        It yields the network itself, or a copy on the CPU if the network is sharded.
        """
        if is_sharded(backbone(network)):
            return self.trainer.strategy.full_parameters(network)
        return nullcontext(network)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Repair, measure and clip the gradients; a precision plugin has already unscaled them."""
        parameters = trained_by(optimizer)
        if self._measured:
            self._nonfinite = nonfinite_share(parameters)
        repair_gradients(parameters)
        if self._measured:
            self._norm = gradient_norm(parameters)
        if (limit := self.clipping.clip_val) is not None:
            clip_gradients(parameters, limit, self.clipping.clip_algorithm)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what the weights do not show: adapters' scales and bases, and optimizer classes."""
        checkpoint |= adapters_record(self)
        checkpoint["optimizer_names"] = [type(o).__name__ for o in self.trainer.optimizers]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Reject LoRA adapters with another scale or for other base weights."""
        check_adapters_record(self, checkpoint)

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Load weights; reject missing or unexpected names and other shapes."""
        check_weights(self.state_dict(), state_dict)
        return super().load_state_dict(state_dict, strict=False)


def _drop_frozen(
    module: AlternatingModule, state_dict: dict[str, Any], prefix: str, _: Any
) -> None:
    """Remove frozen weights from a state dict; they are loaded from the teacher's files."""
    frozen = tuple(prefix + name for name in module.frozen)
    for name in [name for name in state_dict if name.startswith(frozen)]:
        del state_dict[name]


@contextmanager
def frozen(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Freeze parameters within the context; gradients still flow through to the inputs."""
    for p in parameters:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in parameters:
            p.requires_grad_(True)


def trained_by(optimizer: Any) -> list[nn.Parameter]:
    """Return the parameters of an optimizer, which is faster than walking over the modules."""
    return [p for group in optimizer.param_groups for p in group["params"]]


def _counted(values: Tensor, samples: PhaseInputs) -> Tensor:
    """Return detached values [b], with 0 for samples that do not count."""
    values = values.detach()
    return values if samples.counted is None else values.where(samples.counted, 0)


def _nothing() -> None:
    """Do nothing, instead of counting a step."""
