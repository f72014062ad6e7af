"""Iterations under a real Trainer, without prompts of one's own, loggers or callbacks."""

import logging
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import LambdaCallback
from lightning.pytorch.utilities.types import TRAIN_DATALOADERS
from tqdm import tqdm

from sid_lsg.benchmark.machine import clock
from sid_lsg.benchmark.memory import measured_memory
from sid_lsg.benchmark.operators import measured_operators, waiting, with_flops
from sid_lsg.benchmark.parts import Parts, counted_flops, measured_parts
from sid_lsg.data.prompts import Iterations, PromptDataset, StatelessDataLoader
from sid_lsg.training.module import SiDLSG

# Of ordinary lengths; what they say makes no difference to the cost.
_PROMPTS = tuple(
    f"{subject} {place}, {style}"
    for subject in ("a red bicycle", "two dogs", "an old man reading a newspaper", "a bowl of soup")
    for place in ("on a table", "in a field of tall yellow grass", "beside a quiet river at dawn")
    for style in ("photograph", "oil painting with thick strokes of the brush", "pencil drawing")
)

Measure = Callable[[], AbstractContextManager[Any]]


def fit(
    module: SiDLSG,
    batch_size: int,
    iterations: int,
    callbacks: Sequence[L.Callback],
    progress: str | None = None,
    **trainer: Any,
) -> None:
    """Train for some iterations, with the given callbacks alone.

    The loader has no workers: what they would do counts.

    Args:
        module: What to train.
        batch_size: B.
        iterations: How many.
        callbacks: What measures.
        progress: Name for a progress bar; none by default.
        trainer: Options of the Trainer: accelerator, precision.
    """
    dataset = PromptDataset(_PROMPTS, batch_size, seed=0, tokenize=module.teacher.tokenize)
    loader: TRAIN_DATALOADERS = StatelessDataLoader(
        dataset, batch_size=None, sampler=Iterations(lambda: 0, iterations)
    )
    bar = tqdm(desc=progress, total=iterations, disable=progress is None, leave=False)
    counting = LambdaCallback(on_train_batch_end=lambda *_: bar.update())
    with _quiet(), bar:
        L.Trainer(
            **{"accelerator": "auto", "devices": 1} | trainer,
            max_steps=iterations,
            max_epochs=-1,
            log_every_n_steps=10,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            callbacks=[*callbacks, counting],
        ).fit(module, loader)


@contextmanager
def _quiet() -> Iterator[None]:
    """Let Lightning say nothing of devices and ends of training meanwhile."""
    logger = logging.getLogger("lightning.pytorch")
    before = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(before)


def measure(
    module: SiDLSG, batch_size: int, iterations: int, warmup: int, **trainer: Any
) -> dict[str, Any]:
    """Measure a module's iterations: time, its parts, floating-point operations and memory.

    The time of a whole iteration is measured in iterations of their own, without the waiting that
    telling its parts apart takes on a GPU.

    Returns:
        Images per second; seconds of an iteration (median, quartiles, values); medians of its
        parts' seconds; FLOPs of its parts; both by kind of operator; bytes by category.
    """
    seconds: list[float] = []
    parts: list[Parts] = []
    now = _clock(module)

    @contextmanager
    def timed() -> Iterator[None]:
        start = now()
        yield
        seconds.append(now() - start)

    @contextmanager
    def parted() -> Iterator[None]:
        with measured_parts(module, now) as row:
            yield
        parts.append(row)

    flops, memory = _Kept(lambda: counted_flops(module)), _Kept(lambda: measured_memory(module))
    operators = _Kept(lambda: measured_operators(module.device))
    once: list[Measure] = [flops, operators, memory]
    plan: list[Measure] = [*[nullcontext] * warmup, *[timed, parted] * iterations, *once]
    micro_batch_size = module.micro_batch_size or batch_size
    name = f"measuring, micro-batch {micro_batch_size}"
    fit(module, batch_size, len(plan), [_Plan(plan)], progress=name, **trainer)
    median = statistics.median(seconds)
    work, by_operator = flops.row
    names = list(dict.fromkeys(name for row in parts for name in row))
    medians = {name: statistics.median(row.get(name, 0.0) for row in parts) for name in names}
    return {
        "batch_size": batch_size,
        "micro_batch_size": micro_batch_size,
        "images_per_s": batch_size / median,
        "seconds": summary(seconds),
        "parts_seconds": _nested(medians),
        "parts_flops": _nested({name: value for name, value in work.items() if value}),
        "operators": with_flops(waiting(operators.row, median), by_operator),
        "flops": sum(work.values()),
        "flops_per_s": sum(work.values()) / median,
        "memory_bytes": memory.row,
    }


def peak_bytes(module: SiDLSG, batch_size: int, **trainer: Any) -> int:
    """Return the most memory that an iteration takes, when the optimizers have their states.

    On a GPU that is what its allocator gave out, with what libraries take beside the tensors.
    """
    memory = _Kept(lambda: measured_memory(module))
    name = f"trying, micro-batch {module.micro_batch_size or batch_size}"
    plan: list[Measure] = [nullcontext, memory]
    fit(module, batch_size, len(plan), [_Plan(plan)], progress=name, **trainer)
    return int(memory.row.get("allocator", memory.row["all"]))


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Return the median, the quartiles, and the values."""
    first, median, third = (
        statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [*values] * 3
    )
    return {"median": median, "quartiles": [first, third], "values": list(values)}


def _clock(module: SiDLSG) -> Callable[[], float]:
    """Return the clock of the device that the module is on when it is asked."""
    return lambda: clock(module.device)()


class _Kept:
    """A measurement that remembers its row."""

    def __init__(self, measure: Measure) -> None:
        self.measure, self.row = measure, {}  # type: ignore[var-annotated]

    @contextmanager
    def __call__(self) -> Iterator[None]:
        with self.measure() as self.row:
            yield


class _Plan(L.Callback):
    """Measures each iteration in its own way, with what the Trainer does until the next one."""

    def __init__(self, plan: Sequence[Measure]) -> None:
        self._plan = iter(plan)
        self._open: AbstractContextManager[Any] = nullcontext()

    def on_train_batch_start(self, *_: Any) -> None:
        self._open.__exit__(None, None, None)
        self._open = next(self._plan)()
        self._open.__enter__()

    def on_train_end(self, *_: Any) -> None:
        self._open.__exit__(None, None, None)

    def on_exception(self, *_: Any) -> None:
        self._open.__exit__(None, None, None)


def _nested(parts: Parts) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = defaultdict(dict)
    for (phase, part), value in parts.items():
        found[phase][part] = value
    return found
