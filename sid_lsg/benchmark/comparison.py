"""Compare a run's iterations with the baseline's, alternating on one machine."""

import statistics
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import lightning as L

from sid_lsg.benchmark.baseline import Baseline
from sid_lsg.benchmark.machine import clock
from sid_lsg.benchmark.runs import fit, summary
from sid_lsg.data.prompts import PromptBatch
from sid_lsg.messages.errors import UsageError
from sid_lsg.training.module import SiDLSG

_OURS, _STEP = "ours", "ours, without the Trainer"
_BASELINE, _LEAN = "baseline", "baseline, without garbage collection"


def compare(
    module: SiDLSG,
    batch_size: int,
    iterations: int,
    warmup: int,
    save: Callable[[dict[str, Any]], None],
    **trainer: Any,
) -> None:
    """Time iterations of the module in a Trainer and of `Baseline` alternately, in float32.

    The result holds the seconds (`machine.clock`) of each: median, quartiles and values. It also
    holds the speedup over the baseline, with and without the baseline's garbage collection.

    Args:
        module: The module to compare, which is trained.
        batch_size: B.
        iterations: Number of measured iterations of each.
        warmup: Number of iterations of each before those.
        save: Called with the result so far after each measured turn.
        trainer: Options of the Trainer.
    """
    turns = _Turns(module, warmup, save)
    count = iterations + warmup + 1
    fit(module, batch_size, count, [turns], progress="taking turns", **trainer)


def _ratio(theirs: list[float], ours: list[float]) -> dict[str, Any]:
    """Return the ratio of the medians, and the quartiles of the turns' ratios."""
    turns = [a / b for a, b in zip(theirs, ours, strict=True)]
    own = summary(turns)
    return {
        "median": statistics.median(theirs) / statistics.median(ours),
        "quartiles": own["quartiles"],
    }


class _Turns(L.Callback):
    """Run and time the baseline between the Trainer's iterations, which are timed too."""

    def __init__(self, module: SiDLSG, warmup: int, save: Callable[[dict[str, Any]], None]) -> None:
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self._warmup, self._save = warmup, save
        self._started: float | None = None
        self._step, self._module = module.training_step, module
        setattr(module, "training_step", self._timed_step)  # noqa: B010 (on the instance)

    def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        """Build the baseline from the same networks, on the same device.

        Raises:
            UsageError: If the official code cannot train this teacher.
        """
        m = self._module
        m.teacher.to(trainer.strategy.root_device)
        try:
            self._baseline = Baseline(
                m.teacher,
                m.kappas,
                m.alpha,
                m.t_init,
                m.method.tmin,
                m.method.tmax,
                m.method.prompt_dropout or 0,
                m.micro_batch_size,
            )
        except ValueError as error:
            raise UsageError(
                f"--benchmark.compare_official: {error}. Give a teacher of Stable Diffusion 1 "
                "or 2, or leave the option out."
            ) from error

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: Any, batch: PromptBatch, batch_idx: int
    ) -> None:
        """End one turn of ours, which includes the Trainer's work, and run the baseline's turns."""
        if self._started is not None:
            self.seconds[_OURS].append(self._now() - self._started)
            if len(self.seconds[_OURS]) > self._warmup:
                self._save(self._result())
        for name, collect in ((_BASELINE, True), (_LEAN, False)):
            self._baseline.collect = collect
            started = self._now()
            self._baseline.iteration(batch.fake, batch.generator)
            self.seconds[name].append(self._now() - started)
        self._started = self._now()

    def on_train_end(self, *_: Any) -> None:
        """Restore the module's `training_step`."""
        del self._module.training_step

    def _timed_step(self, *args: Any) -> None:
        started = self._now()
        self._step(*args)
        self.seconds[_STEP].append(self._now() - started)

    def _now(self) -> float:
        return clock(self._module.device)()

    def _result(self) -> dict[str, Any]:
        complete = slice(self._warmup, len(self.seconds[_OURS]))
        seconds = {name: values[complete] for name, values in self.seconds.items()}
        return {
            "iterations": {name: summary(values) for name, values in seconds.items()},
            "ratio": _ratio(seconds[_BASELINE], seconds[_OURS]),
            "ratio_without_garbage_collection": _ratio(seconds[_LEAN], seconds[_OURS]),
        }
