"""What `benchmark` measures."""

from dataclasses import dataclass, field
from pathlib import Path

from sid_lsg.messages.checks import refuse
from sid_lsg.options.choices import MeasuredPrecision, MemoryUse


@dataclass
class Benchmark:
    """What to measure.

    Args:
        output: Where to save the numbers: a .json file; a .md file of the same name is beside it.
        precisions: The precisions to measure, one after the other: fp32, tf32, bf16 (that
            is bf16-mixed), bf16-compile (with --model.compute.compile true), or the config's.
        memories: The ways to use memory, each in each precision: fast, balanced, lean (see
            --model.memory.activations), each with -checkpointing for activation checkpointing of
            all networks, such as lean-checkpointing, or the config's.
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
    precisions: list[MeasuredPrecision] = field(default_factory=lambda: ["config"])
    memories: list[MemoryUse] = field(default_factory=lambda: ["config"])
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
