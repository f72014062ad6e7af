"""Options of `benchmark`."""

from dataclasses import dataclass, field
from pathlib import Path

from sid_lsg.messages.checks import refuse
from sid_lsg.options.choices import MeasuredPrecision, MemoryUse


@dataclass
class Benchmark:
    """Choose what `benchmark` measures.

    Args:
        output: The .json file to write. A .md file of the same name is written beside it.
        precisions: The precisions to measure: fp32, tf32, bf16 (bf16-mixed), bf16-compile (with
            --model.compute.compile true), or config for the config's.
        memories: The memory options to measure in each precision: fast, balanced or lean (see
            --model.memory.activations), each optionally with activation checkpointing of all
            networks, for example lean-checkpointing; or config for the config's.
        micro_batches: The micro-batch sizes to measure; the batch then has the same size. By
            default the config's micro-batch and batch.
        iterations: Number of timed iterations. As many more are run to time the parts.
        warmup: Number of iterations before the timed ones.
        threads: CPU threads. With one thread, times on a CPU are CPU seconds, which other programs
            disturb less. By default one on a CPU, and PyTorch's default on a GPU.
        search: Find the largest micro-batch that fits, for each precision and memory option. By
            default true on a GPU, except for compiled networks, which would be compiled again for
            each size; and true if memory_limit is set.
        memory_limit: The memory that a micro-batch must fit in, in GiB. On a CPU, the memory of the
            tensors is counted.
        compare_official: Compare with an iteration as the official code runs it: alternately, in
            float32, with the config's batch and micro-batch. Measures nothing else.
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
        """Validate the options.

        Raises:
            UsageError: For the first value that cannot be measured.
        """
        for name in ("iterations", "warmup", "threads"):
            if (value := getattr(self, name)) is not None and value < 1:
                refuse(f"benchmark.{name}", value, "at least 1")
        if self.micro_batches is not None and min(self.micro_batches, default=0) < 1:
            refuse("benchmark.micro_batches", self.micro_batches, "a list of numbers from 1")
        for name, what in (("precisions", "precisions"), ("memories", "memory options")):
            if not getattr(self, name):
                refuse(f"benchmark.{name}", [], f"a list of {what}")
        if self.memory_limit is not None and self.memory_limit <= 0:
            refuse("benchmark.memory_limit", self.memory_limit, "a number of GiB")
        if self.output.suffix != ".json":
            refuse("benchmark.output", str(self.output), "the name of a .json file")
