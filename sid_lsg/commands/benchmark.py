"""`benchmark`: how fast a config trains on this machine, in how much memory, and what takes it."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import torch

from sid_lsg.benchmark.comparison import compare
from sid_lsg.benchmark.machine import clock, describe, matmul_ceiling, threads
from sid_lsg.benchmark.report import markdown
from sid_lsg.benchmark.runs import measure, peak_bytes
from sid_lsg.benchmark.search import largest, without_memory_error
from sid_lsg.benchmark.settings import MemoryUse, Precision, Setting
from sid_lsg.commands.fit_options import FitOptions
from sid_lsg.files.replacing import replacing, writing
from sid_lsg.messages.checks import refuse
from sid_lsg.messages.errors import UsageError
from sid_lsg.networks.precision import tf32
from sid_lsg.options.guidance import Guidance
from sid_lsg.training.module import SiDLSG
from sid_lsg.training.optimizer_options import check_steps, optimizers_of

Save = Callable[[dict[str, Any]], None]


@dataclass
class Benchmark:
    """What to measure.

    Args:
        output: Where to save the numbers: a .json file; a .md file of the same name is beside it.
        precisions: The precisions to measure, one after the other: fp32, tf32, bf16 (that
            is bf16-mixed), bf16-compile (with --model.compile true), or the config's.
        memories: The ways to use memory, each in each precision: fast, balanced, lean (see
            --model.memory), each with -checkpointing for all networks that compute their
            activations again, such as lean-checkpointing, or the config's.
        micro_batches: The micro-batches to measure; each is then the whole batch too. By default
            the config's, with its batch.
        iterations: How many iterations are timed, and how many more are to tell the parts apart.
        warmup: How many iterations come first.
        threads: Threads of the CPU. With one, times on a CPU are CPU seconds, which other programs
            disturb less. By default one on a CPU, and PyTorch's own number on a GPU.
        search: Find the largest micro-batch that fits, in each precision and way to use memory. By
            default on a GPU, but for compiled networks, which each size that is tried would compile
            again; or where there is a memory_limit.
        memory_limit: What has to be enough, in GiB; on a CPU from counted memory.
        compare_official: Compare with an iteration in the manner of the official code instead: in
            turns, in float32, with the config's batch and micro-batch.
    """

    output: Path = Path("runs/benchmark.json")
    precisions: list[Precision] = field(default_factory=lambda: list[Precision](["config"]))
    memories: list[MemoryUse] = field(default_factory=lambda: list[MemoryUse](["config"]))
    micro_batches: list[int] | None = None
    iterations: int = 10
    warmup: int = 3
    threads: int | None = None
    search: bool | None = None
    memory_limit: float | None = None
    compare_official: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot be measured."""
        for name in ("iterations", "warmup", "threads"):
            if (value := getattr(self, name)) is not None and value < 1:
                refuse(f"benchmark.{name}", value, "at least 1")
        if self.micro_batches is not None and min(self.micro_batches, default=0) < 1:
            refuse("benchmark.micro_batches", self.micro_batches, "a list of numbers from 1")
        for name, what in (("precisions", "precisions"), ("memories", "ways to use memory")):
            if not getattr(self, name):
                refuse(f"benchmark.{name}", [], f"a list of {what}")
        if self.memory_limit is not None and self.memory_limit <= 0:
            refuse("benchmark.memory_limit", self.memory_limit, "a number of GiB")
        if self.output.suffix != ".json":
            refuse("benchmark.output", str(self.output), "the name of a .json file")


def benchmark(args: Sequence[str]) -> None:
    """Measure how fast a config trains on this machine, in how much memory, and what takes it.

    Nothing is trained for keeps, and prompts are made up. It prints the numbers and saves them with
    the machine's name.

    Args:
        args: Options of `fit`, and those of `Benchmark` after `--benchmark.`.

    Raises:
        UsageError: If an option is out of range, an optimizer takes no step, or the report cannot
            be written.
    """
    cli = FitOptions(benchmark, Benchmark, args)
    options = Benchmark(**cli.config.benchmark.as_dict())
    if cli.config.model.real_data:
        raise UsageError(
            "--model.real_data: `benchmark` makes prompts up and has no images. Leave it out."
        )
    with writing(options.output.parent, "benchmark.output"):
        options.output.parent.mkdir(parents=True, exist_ok=True)
    device = _device(cli.config.trainer.accelerator)
    check_steps(optimizers_of(cli.config.model), device)
    number = options.threads or (1 if device.type == "cpu" else torch.get_num_threads())
    with threads(number):
        about = {
            "teacher": cli.config.model.teacher,
            "machine": describe(device),
            "unit": "CPU seconds" if clock(device) is time.process_time else "seconds",
            "iterations": options.iterations,
            "config": json.loads(json.dumps(cli.config.model.as_dict(), default=str)),
        }

        def save(found: dict[str, Any]) -> None:
            _save(about | found, options.output)

        measure_all = _compared if options.compare_official else _measured
        found = measure_all(cli, options, device, save)
    print(markdown(about | found))


def _save(result: dict[str, Any], output: Path) -> None:
    """Write what is known so far: a run that is stopped keeps what it has measured."""
    with writing(output.parent, "benchmark.output"):
        for suffix, text in ((".json", json.dumps(result, indent=1)), (".md", markdown(result))):
            with replacing(output.with_suffix(suffix)) as temporary:
                temporary.write_text(text, encoding="utf-8")


def _compared(
    cli: FitOptions, options: Benchmark, device: torch.device, save: Save
) -> dict[str, Any]:
    """Compare with the baseline; save all that is known after each turn."""
    _check_comparable(cli.config.model)
    with device:
        module = cli.module(tf32=False)
    found: dict[str, Any] = {}

    def save_turns(comparison: dict[str, Any]) -> None:
        turns = len(next(iter(comparison["iterations"].values()))["values"])
        found.update(comparison=comparison, iterations=turns)
        save(found)

    batch, count, warmup = cli.config.data.batch_size, options.iterations, options.warmup
    with tf32(False):
        compare(module, batch, count, warmup, save_turns, accelerator=device.type)
    return found


def _check_comparable(model: Any) -> None:
    """Refuse options with which the baseline, which has none of them, would do other work."""
    kappas = Guidance(**model.guidance.as_dict()).kappas
    refused = {
        "num_steps": model.num_steps != 1,
        "guidance.eval_fake": kappas.eval_fake_2 != kappas.eval_fake_3,
        "frozen_precision": model.frozen_precision != "32",
        **{f"lora_{name}": bool(model[f"lora_{name}"]) for name in ("fake_score", "generator")},
    }
    for name, other in refused.items():
        if other:
            raise UsageError(
                f"--model.{name}: an iteration in the manner of the official code has nothing like "
                "it, so --benchmark.compare_official cannot compare. Leave one of them out."
            )


def _measured(
    cli: FitOptions, options: Benchmark, device: torch.device, save: Save
) -> dict[str, Any]:
    """Measure each setting and micro-batch; save all that is known after each."""
    settings: list[dict[str, Any]] = []
    too_large: list[str] = []
    found: dict[str, int] = {}
    result = {
        "settings": settings,
        "does_not_fit": too_large,
        "largest_micro_batch": found,
    }
    own = str(cli.config.trainer.precision or "32-true")
    for precision, memory in product(options.precisions, options.memories):
        setting = Setting(precision, memory, own)
        tries = _Tries(cli, options, device, setting)
        with tf32(setting.changes.get("tf32", cli.config.model.tf32)):
            ceiling = matmul_ceiling(device, setting.dtype)
            for micro_batch in options.micro_batches or (None,):
                if (row := tries.measure(micro_batch)) is None:
                    too_large.append(
                        f"{setting.name}, micro-batch {micro_batch or 'as configured'}"
                    )
                    print(f"{too_large[-1]}: does not fit.", flush=True)
                    continue
                share = row["flops_per_s"] / ceiling
                about = {"precision": precision, "memory": memory, "ceiling_flops_per_s": ceiling}
                settings.append(about | {"share_of_ceiling": share} | row)
                print(
                    f"{setting.name}, micro-batch {row['micro_batch_size']}: "
                    f"{row['images_per_s']:.3g} images/s, {share:.0%} of the ceiling.",
                    flush=True,
                )
                save(result)
            if tries.wanted:
                found[setting.name] = largest(tries.fits)
            save(result)
    return result


@dataclass
class _Tries:
    """Attempts in one setting, each with a module of its own."""

    cli: FitOptions
    options: Benchmark
    device: torch.device
    setting: Setting

    @property
    def trainer(self) -> dict[str, Any]:
        """Options of the Trainer."""
        precision = self.setting.trainer_precision
        return {"accelerator": self.device.type, "precision": precision}

    @property
    def wanted(self) -> bool:
        """Whether the largest micro-batch that fits is to be found."""
        if self.options.search is not None:
            return self.options.search
        compiled = self.setting.changes.get("compile", self.cli.config.model.compile)
        on_gpu = self.device.type == "cuda" and not compiled
        return on_gpu or self.options.memory_limit is not None

    def _module(self, micro_batch_size: int | None) -> SiDLSG:
        with self.device:  # where random weights are made in no time
            return self.cli.module(micro_batch_size=micro_batch_size, **self.setting.changes)

    def measure(self, micro_batch: int | None) -> dict[str, Any] | None:
        """Measure a micro-batch, or the config's own; None if the memory is not enough."""
        config, count, warmup = self.cli.config, self.options.iterations, self.options.warmup
        own, batch = config.model.micro_batch_size, config.data.batch_size
        if micro_batch is not None:
            own, batch = micro_batch, micro_batch
        row: dict[str, Any] = {}

        def attempt() -> None:
            row.update(measure(self._module(own), batch, count, warmup, **self.trainer))

        return row if without_memory_error(attempt) else None

    def fits(self, size: int) -> bool:
        """Try iterations of two micro-batches: in the second, all that is ever held is held."""
        peak = 0

        def attempt() -> None:
            nonlocal peak
            peak = peak_bytes(self._module(size), 2 * size, **self.trainer)

        limit = self.options.memory_limit
        return without_memory_error(attempt) and (limit is None or peak <= limit * 2**30)


def _device(accelerator: str) -> torch.device:
    """Return the device that the Trainer will choose."""
    cuda = accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    return torch.device("cuda", 0) if cuda else torch.device("cpu")
