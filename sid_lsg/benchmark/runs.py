"""Run and measure iterations in a Trainer, with fixed prompts and without loggers or callbacks."""

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

# Prompts of common lengths; their content does not affect the cost.
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
    """Train for some iterations with only the given callbacks.

    The loader has no workers, so that its work is included in the measurement.

    Args:
        module: The module to train.
        batch_size: B.
        iterations: Number of iterations.
        callbacks: The callbacks, which measure.
        progress: Title of a progress bar; by default there is none.
        trainer: Options of the Trainer, such as accelerator and precision.
    """
    if module.drops_text and module.teacher.remembered is None:
        module.teacher.encode_once(_PROMPTS)
    tokenize = None if module.teacher.remembered else module.teacher.tokenize
    dataset = PromptDataset(_PROMPTS, batch_size, seed=0, tokenize=tokenize)
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
    """Silence Lightning's messages below warnings within the context."""
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
    """Measure a module's iterations: time, time by part, FLOPs and memory.

    Whole iterations and parts are timed in separate iterations, since timing parts synchronizes a
    GPU.

    Returns:
        Images per second; seconds of an iteration (median, quartiles, values); median seconds and
        FLOPs by part; seconds and FLOPs by kind of operator; bytes by category.
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

    flops = _Recorded(lambda: counted_flops(module))
    memory = _Recorded(lambda: measured_memory(module))
    operators = _Recorded(lambda: measured_operators(module.device))
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
    """Return the peak bytes of an iteration once the optimizers have their states.

    On a GPU it is the allocator's peak, which includes the libraries' workspaces.
    """
    memory = _Recorded(lambda: measured_memory(module))
    name = f"trying, micro-batch {module.micro_batch_size or batch_size}"
    plan: list[Measure] = [nullcontext, memory]
    fit(module, batch_size, len(plan), [_Plan(plan)], progress=name, **trainer)
    return int(memory.row.get("allocator", memory.row["all"]))


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Return the median, the quartiles and the values."""
    first, median, third = (
        statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [*values] * 3
    )
    return {"median": median, "quartiles": [first, third], "values": list(values)}


def _clock(module: SiDLSG) -> Callable[[], float]:
    """Return the clock of the module's device, which is looked up at each call."""
    return lambda: clock(module.device)()


class _Recorded:
    """A measurement that stores its result in `row`."""

    def __init__(self, measure: Measure) -> None:
        self.measure, self.row = measure, {}  # type: ignore[var-annotated]

    @contextmanager
    def __call__(self) -> Iterator[None]:
        with self.measure() as self.row:
            yield


class _Plan(L.Callback):
    """Measure each iteration as planned, including the Trainer's work until the next one."""

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
