"""Time and FLOPs of an iteration by part."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

import sid_lsg.training.alternating
import sid_lsg.training.module
from sid_lsg.method.draws import Phase
from sid_lsg.networks.compilation import as_written
from sid_lsg.training.ema import update_ema
from sid_lsg.training.module import SiDLSG

Parts = dict[tuple[str, str], float]
"""(phase, part) to seconds or FLOPs; phases are "fake score", "generator" and "iteration"."""

_PHASES = {Phase.FAKE_SCORE: "fake score", Phase.GENERATOR: "generator"}
_OUTSIDE = "iteration"


class Meter:
    """Sum a counter's increments by part; the innermost open part gets them.

    Args:
        now: Returns the counter: seconds or FLOPs so far.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self.parts: dict[tuple[str, str], float] = defaultdict(float)
        self.phase = _OUTSIDE
        self._now, self._open = now, ["Trainer and loader"]
        self._last = now()

    def enter(self, phase: str) -> None:
        """Start a phase."""
        self._turn()
        self.phase = phase

    def start(self, part: str) -> None:
        """Start a part and pause the enclosing one."""
        self._turn()
        self._open.append(part)

    def end(self) -> None:
        """End the innermost part."""
        self._turn()
        self._open.pop()

    def _turn(self) -> None:
        now = self._now()
        self.parts[self.phase, self._open[-1]] += now - self._last
        self._last = now

    def around(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a function so that its calls count as a part."""

        @wraps(function)
        def measured(*args: Any, **kwargs: Any) -> Any:
            self.start(part)
            try:
                return function(*args, **kwargs)
            finally:
                self.end()

        return measured


@contextmanager
def measured_parts(module: SiDLSG, now: Callable[[], float]) -> Iterator[Parts]:
    """Measure an iteration by part; complete when the context ends.

    The public methods and functions that the training step calls are wrapped within the context.
    Everything else in the step is "other".
    """
    meter = Meter(now)

    def of_phase(phase: str | None, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        inside = meter.around(part, function)

        def measured(*args: Any, **kwargs: Any) -> Any:
            meter.enter(phase or _PHASES[args[0]])
            return inside(*args, **kwargs)

        return measured

    def whole_step(*args: Any) -> Any:
        step(*args)
        meter.enter(_OUTSIDE)

    step = meter.around("other", module.training_step)
    ema = of_phase(_OUTSIDE, "EMA", update_ema)
    wrapped: list[tuple[Any, str, str]] = [
        (module.teacher, "encode", "text"),
        (module.generator, "forward", "generator"),
        (module.fake_score, "forward", "fake score"),
        (module.teacher.network, "forward", "teacher"),
        (torch.autograd, "backward", "backward"),
        (torch.autograd, "grad", "backward"),
        (sid_lsg.training.alternating, "all_reduce_mean", "reduce"),
        (module, "on_before_optimizer_step", "repair and norm"),
        *((optimizer, "step", "optimizer") for optimizer in module.trainer.optimizers),
        (module.log_of_iterations, "write", "logging"),
    ]
    with ExitStack() as stack:
        for owner, name, part in wrapped:
            function = meter.around(part, getattr(owner, name))
            stack.enter_context(mock.patch.object(owner, name, function))
        inputs = of_phase(None, "draws", module.phase_inputs)  # the text encoder counts as "text"
        stack.enter_context(mock.patch.object(module, "training_step", whole_step))
        stack.enter_context(mock.patch.object(module, "phase_inputs", inputs))
        stack.enter_context(mock.patch.object(sid_lsg.training.module, "update_ema", ema))
        row: Parts = {}
        yield row
        meter.start("end")  # adds the time of the open part
        row.update(meter.parts)


class Flops(NamedTuple):
    """FLOPs of an iteration, by part and by operator's name."""

    parts: Parts
    operators: dict[str, float]


@contextmanager
def counted_flops(module: SiDLSG) -> Iterator[Flops]:
    """Count the FLOPs of matrix products, convolutions and attention in an eager iteration."""
    aten = torch.ops.aten
    ours = {  # missing in PyTorch's list
        aten._scaled_dot_product_flash_attention_for_cpu: _attention,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
    }
    counter = FlopCounterMode(display=False, custom_mapping=ours)
    with (
        as_written(module.compute.compile),
        counter,
        measured_parts(module, counter.get_total_flops) as parts,
    ):
        flops = Flops(parts, {})
        yield flops
    flops.operators.update({str(n): v for n, v in counter.get_flop_counts()["Global"].items()})


def _attention(query: torch.Size, key: torch.Size, value: torch.Size, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query, key, value))


def _attention_backward(
    grad: torch.Size, query: torch.Size, key: torch.Size, value: torch.Size, *_: Any, **__: Any
) -> int:
    return int(sdpa_backward_flop_count(grad, query, key, value))
