"""Run the measurements of `benchmark`: all settings and micro-batches, or a comparison."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any, Protocol

import torch

from sid_lsg.benchmark.comparison import compare
from sid_lsg.benchmark.machine import matmul_ceiling
from sid_lsg.benchmark.runs import measure, peak_bytes
from sid_lsg.benchmark.search import largest, without_memory_error
from sid_lsg.benchmark.settings import Setting
from sid_lsg.messages.errors import UsageError
from sid_lsg.networks.precision import tf32
from sid_lsg.options.benchmark import Benchmark
from sid_lsg.options.guidance import Guidance
from sid_lsg.training.module import SiDLSG

Save = Callable[[dict[str, Any]], None]


class Run(Protocol):
    """The parsed options of `fit`, from which modules are made."""

    config: Any

    def module(self, changes: Mapping[str, Any]) -> SiDLSG:
        """Return a new module; `changes` maps dotted option names to other values."""


def compared(cli: Run, options: Benchmark, device: torch.device, save: Save) -> dict[str, Any]:
    """Compare with the official manner; save the results so far after each turn."""
    _check_comparable(cli.config.model)
    with device:
        module = cli.module({"compute.tf32": False})
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
    """Reject options that the baseline lacks, so that both sides do the same work."""
    kappas = Guidance(**model.guidance.as_dict()).kappas
    refused = {
        "num_steps": model.num_steps != 1,
        "fake_steps": model.fake_steps != 1,
        "objective": model.objective != "sid",
        "weighting": model.weighting not in (None, "sid", "sid_legacy"),
        "guidance.scale": 0 in kappas,  # one pass here, two there
        "guidance.eval_fake": kappas.eval_fake_2 != kappas.eval_fake_3,
        "memory.frozen_precision": model.memory.frozen_precision != "32",
        **{f"lora.{name}": bool(own) for name, own in model.lora.as_dict().items()},
    }
    for name, other in refused.items():
        if other:
            raise UsageError(
                f"--model.{name}: an iteration in the manner of the official code has nothing like "
                "it, so --benchmark.compare_official cannot compare. Leave one of them out."
            )


def measured(cli: Run, options: Benchmark, device: torch.device, save: Save) -> dict[str, Any]:
    """Measure each setting and micro-batch; save the results so far after each."""
    settings: list[dict[str, Any]] = []
    too_large: list[str] = []
    found: dict[str, int] = {}
    result = {
        "settings": settings,
        "does_not_fit": too_large,
        "largest_micro_batch": found,
    }
    own = str(cli.config.trainer.precision or "32-true")
    ceilings: dict[str, float] = {}  # by precision
    for precision, memory in product(options.precisions, options.memories):
        setting = Setting(precision, memory, own)
        tries = _Attempts(cli, options, device, setting)
        with tf32(setting.changes.get("compute.tf32", cli.config.model.compute.tf32)):
            if (ceiling := ceilings.get(precision)) is None:
                ceiling = ceilings[precision] = matmul_ceiling(device, setting.dtype)
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
class _Attempts:
    """Measure one setting; each attempt makes a new module."""

    cli: Run
    options: Benchmark
    device: torch.device
    setting: Setting

    @property
    def trainer(self) -> dict[str, Any]:
        """Return the Trainer's options."""
        precision = self.setting.trainer_precision
        return {"accelerator": self.device.type, "precision": precision}

    @property
    def wanted(self) -> bool:
        """True if the search for the largest micro-batch that fits is enabled."""
        if self.options.search is not None:
            return self.options.search
        own = self.cli.config.model.compute.compile
        compiled = self.setting.changes.get("compute.compile", own)
        on_gpu = self.device.type == "cuda" and not compiled
        return on_gpu or self.options.memory_limit is not None

    def _module(self, micro_batch_size: int | None) -> SiDLSG:
        with self.device:  # random weights are initialized faster on the device
            return self.cli.module({"micro_batch_size": micro_batch_size, **self.setting.changes})

    def measure(self, micro_batch: int | None) -> dict[str, Any] | None:
        """Measure a micro-batch (by default the config's); return None if it runs out of memory."""
        config, count, warmup = self.cli.config, self.options.iterations, self.options.warmup
        own, batch = config.model.micro_batch_size, config.data.batch_size
        if micro_batch is not None:
            own, batch = micro_batch, micro_batch
        row: dict[str, Any] = {}

        def attempt() -> None:
            row.update(measure(self._module(own), batch, count, warmup, **self.trainer))

        return row if without_memory_error(attempt) else None

    def fits(self, size: int) -> bool:
        """Return True if a micro-batch fits. The second of two micro-batches has peak memory."""
        peak = 0

        def attempt() -> None:
            nonlocal peak
            peak = peak_bytes(self._module(size), 2 * size, **self.trainer)

        limit = self.options.memory_limit
        return without_memory_error(attempt) and (limit is None or peak <= limit * 2**30)
