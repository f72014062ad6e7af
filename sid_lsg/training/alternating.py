"""Networks that are trained in turn: the mechanics of a step, whatever the method.

A LightningModule with manual optimization. Only one network's gradients are reduced per phase,
once, a bad sample cannot spoil the others, and one iteration of all phases counts as one step.
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
from sid_lsg.messages.errors import UsageError
from sid_lsg.method.phases import FakeScoreOutput, GeneratorOutput, PhaseInputs
from sid_lsg.networks.lora import adapters, adapters_record, check_adapters_record, is_adapter
from sid_lsg.options.training import Gradients
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
"""A phase's forward pass: samples to their losses."""


class AlternatingModule(L.LightningModule):
    """Take optimizer steps on one network after the other.

    Attributes:
        micro_batch_size: Samples per forward and backward pass; None for all at once.
        clipping: Whether and how the gradients are clipped.
        frozen: Prefixes of the state dict that checkpoints leave out.
    """

    micro_batch_size: int | None = None
    clipping = Gradients()
    frozen: tuple[str, ...] = ()
    _measured = False
    _ended = False  # whether the callbacks' `on_trained` has been called

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.strict_loading = False  # load_state_dict below is strict about what matters
        self.register_state_dict_post_hook(_drop_frozen)

    def remember_options(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        """Note the options that optimizers are made with: learning rates, betas and so on.

        And let a gradient scaler unscale gradients before they are repaired: a fused optimizer
        would do it in its step, and the scaler would never see that they have overflown.
        """
        for optimizer in optimizers:
            setattr(optimizer, "_step_supports_amp_scaling", False)  # noqa: B010 (none declares it)
        self._options = [
            [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
            for optimizer in optimizers
        ]

    def on_train_start(self) -> None:
        """Make what a checkpoint has brought this run's: the order in memory, and the options.

        A checkpoint holds the options of the run that wrote it; a learning rate that is changed
        when a run is continued would silently have no effect.
        """
        for optimizer, groups in zip(self.trainer.optimizers, self._options, strict=True):
            for weight, state in optimizer.state.items():
                for name, value in state.items():
                    if name in ELEMENTWISE and torch.is_tensor(value):
                        state[name] = match_memory_format(value, weight)
            for group, options in zip(optimizer.param_groups, groups, strict=True):
                for name, value in options.items():
                    if group[name] != value:
                        rank_zero_info(f"{name} was {group[name]} before, and is {value} now.")
                group.update(options)

    def on_train_end(self) -> None:
        """Call the callbacks' `on_trained`, after the `on_train_end` of each."""
        self._ended = True
        for callback in run_callbacks(self.trainer):
            callback.on_trained(self.trainer, self)

    def on_fit_end(self) -> None:
        """Do the same for a run that was complete when it began: Lightning skips its training."""
        if not self._ended:
            self.to(self.trainer.strategy.root_device)
            self.on_train_end()
        self._ended = False  # the module may be trained again

    def count_steps_of(self, optimizer: Any) -> None:
        """Let this optimizer's steps alone count.

        `global_step`, `max_steps`, checkpoints and the loggers' x axis then mean iterations;
        Lightning would count every optimizer's step.
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

        A sample whose loss is not finite has no part in the step: if there is one on any rank, all
        ranks evaluate the phase again, with good samples in the places of bad ones. The others'
        gradients are exact; the loss stays divided by the whole batch.

        Args:
            inputs: This rank's share of the batch.
            phase: The phase's forward pass.
            network: The network to update.
            optimizer: Its optimizer.
            measured: Whether to measure what costs two passes over all gradients and a read of
                the weights; none of them waits for the device.
        """
        losses, numbers, bad = self._accumulate(inputs, phase, network)
        finite = losses.isfinite()
        skipped = int(bad)  # decides what all ranks compute next
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
        optimizer.zero_grad()  # one network's gradients are held at a time
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
            Every sample's loss [B]; its weight and further numbers, each [B] by name; all zero for
            samples that do not count; and how many losses of all ranks are not finite. That is sent
            before the last backward pass, which keeps the device busy while the host waits for it.
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
        """Keep DistributedDataParallel from reducing: it would reduce both networks each time."""
        wrapper = self.trainer.strategy.model
        return wrapper.no_sync() if isinstance(wrapper, DistributedDataParallel) else nullcontext()

    def shard(self, *networks: nn.Module) -> None:
        """Shard networks, where the strategy does that.

        Raises:
            UsageError: If one has adapters: its base belongs to several networks.
        """
        if isinstance(strategy := self.trainer.strategy, FSDP2Strategy):
            if any(adapters(network) for network in networks):
                raise UsageError(
                    "--trainer.strategy fsdp2 cannot spread the weights that networks with LoRA "
                    "adapters share. Choose ddp_multi, or leave --model.lora out."
                )
            for network in networks:
                strategy.shard(network)

    def full_parameters(self, network: nn.Module) -> AbstractContextManager[nn.Module]:
        """Give the first process a network with whole weights, to read. For all processes.

        That is the network itself unless it is sharded, when it is a copy on the CPU.
        """
        if is_sharded(network):
            return self.trainer.strategy.full_parameters(network)
        return nullcontext(network)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Repair, measure and clip the gradients, after a precision plugin has unscaled them."""
        parameters = trained_by(optimizer)
        if self._measured:
            self._nonfinite = nonfinite_share(parameters)
        repair_gradients(parameters)
        if self._measured:
            self._norm = gradient_norm(parameters)
        if (limit := self.clipping.clip_val) is not None:
            clip_gradients(parameters, limit, self.clipping.clip_algorithm)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save what the weights do not show: adapters' scales and bases, optimizers' kinds."""
        checkpoint |= adapters_record(self)
        checkpoint["optimizer_names"] = [type(o).__name__ for o in self.trainer.optimizers]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse adapters that would count for more or less, or are for other weights."""
        check_adapters_record(self, checkpoint)

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Load a checkpoint; refuse one with anything missing, left over or misshapen."""
        check_weights(self.state_dict(), state_dict)
        return super().load_state_dict(state_dict, strict=False)


def _drop_frozen(
    module: AlternatingModule, state_dict: dict[str, Any], prefix: str, _: Any
) -> None:
    """Leave what is not trained out of checkpoints: it comes from files of its own."""
    frozen = tuple(prefix + name for name in module.frozen)
    adapted = tuple(f"{prefix}{name}." for name, net in module.named_children() if adapters(net))
    for name in list(state_dict):
        if name.startswith(frozen) or (name.startswith(adapted) and not is_adapter(name)):
            del state_dict[name]


@contextmanager
def constant(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Stop gradients to what is trained of a network, not through it to its inputs."""
    for p in parameters:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in parameters:
            p.requires_grad_(True)


def trained_by(optimizer: Any) -> list[nn.Parameter]:
    """Return an optimizer's parameters: what `trainable` finds, without a walk over the network."""
    return [p for group in optimizer.param_groups for p in group["params"]]


def _counted(values: Tensor, samples: PhaseInputs) -> Tensor:
    """Return numbers [b] without gradient, 0 for samples that do not count."""
    values = values.detach()
    return values if samples.counted is None else values.where(samples.counted, 0)


def _nothing() -> None:
    """Count nothing."""
