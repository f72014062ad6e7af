"""`estimate`: estimate the memory on each device and the duration of a run."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sid_lsg.commands.parser import answer_help
from sid_lsg.costs.cards import CARDS, GPU, REACHED, REACHED_COMPILED
from sid_lsg.files.replacing import check_writable, replacing, writing
from sid_lsg.messages.checks import refuse

if TYPE_CHECKING:
    from sid_lsg.costs.plan import Plan

_GIB = 2**30
_RESERVE_GIB = 1.5  # assumed: CUDA context, workspaces, fragmentation


@dataclass
class Estimate:
    """The devices to estimate for.

    Args:
        gpu: A known GPU, which sets the peak FLOP/s and the memory.
        gpus: Number of GPUs on all machines; by default from --trainer.devices and
            --trainer.num_nodes, or 1.
        tflops: Peak TFLOP/s of another GPU, in the precision of --trainer.precision, or in TF32
            with --model.compute.tf32 true; without sparsity.
        memory_gb: Memory of another GPU, in GiB.
        efficiency: Share of the peak that is reached. By default what Stable Diffusion 1.5 reached
            on an H200: 0.19 in mixed precision, 0.29 compiled; 0.39 in float32, and 0.13 in TF32.
            GPUs with less memory bandwidth relative to their peak reach less. `benchmark` measures
            it.
        output: A JSON file to write all numbers to.
    """

    gpu: GPU = "h100"
    gpus: int | None = None
    tflops: float | None = None
    memory_gb: float | None = None
    efficiency: float | None = None
    output: Path | None = None

    def __post_init__(self) -> None:
        """Validate the options.

        Raises:
            UsageError: For the first value out of range.
        """
        for name in ("gpus", "tflops", "memory_gb"):
            if (value := getattr(self, name)) is not None and value <= 0:
                refuse(f"estimate.{name}", value, "a positive number")
        if self.efficiency is not None and not 0 < self.efficiency <= 1:
            wanted = "a share of the peak, above 0 and at most 1"
            refuse("estimate.efficiency", self.efficiency, wanted)
        if self.output and self.output.is_dir():
            refuse("estimate.output", str(self.output), "the name of a file, not of a folder")

    @property
    def usable_bytes(self) -> float:
        """Return the memory of a GPU that a run can use."""
        return ((self.memory_gb or CARDS[self.gpu].memory_gib) - _RESERVE_GIB) * _GIB

    def speed(self, plan: "Plan") -> float:
        """Return the FLOP/s that a GPU reaches."""
        kind = "half" if plan.half else "tf32" if plan.compute.tf32 else "float32"
        shares = REACHED_COMPILED if plan.compute.compile else REACHED
        peak = self.tflops or getattr(CARDS[self.gpu], kind)
        return float(peak * 1e12 * (self.efficiency or shares[kind]))


def estimate(args: Sequence[str]) -> dict[str, Any]:
    """Estimate the memory on each device and the duration of a fit.

    Known models are not downloaded. FLOPs and bytes are counted from the networks' shapes. The time
    follows from the measured share of the GPU's peak, or from the host's kernel launches if these
    take longer. It excludes image grids, scores and communication between processes.

    Args:
        args: Options of `fit`, and those of `Estimate` after `--estimate.`.

    Returns:
        The numbers that are written to --estimate.output.

    Raises:
        UsageError: If an option is invalid, or the teacher does not exist.
    """
    answer_help(estimate, Estimate, args)
    from sid_lsg.commands.fit_options import FitOptions
    from sid_lsg.costs.compute import iteration_flops, iteration_seconds, launching_seconds
    from sid_lsg.costs.memory import (
        largest_micro_batch,
        passing_bytes,
        standing_bytes,
        total_bytes,
    )
    from sid_lsg.costs.options import levers, plan_of
    from sid_lsg.costs.plan import PlannedRun
    from sid_lsg.networks.memory import can_checkpoint
    from sid_lsg.teachers.distilled import check_not_distilled
    from sid_lsg.teachers.families import outline
    from sid_lsg.training.trainer_options import check_trainer

    config = FitOptions(estimate, Estimate, args).config
    wanted = Estimate(**config.estimate.as_dict())
    if wanted.output:
        check_writable(wanted.output.absolute().parent, "estimate.output")
    check_trainer(config.trainer)
    plan, model = plan_of(config, wanted.gpus), config.model
    check_not_distilled(model.teacher, model.loading.revision, model.loading.subfolders)
    teacher = outline(
        model.teacher, model.loading.revision, model.loading.subfolders, model.resolution
    )
    known: dict[Any, Any] = {}

    def row(options: str, changes: Mapping[str, Any]) -> dict[str, Any]:
        run = PlannedRun(plan.changed(changes), teacher, known)
        speed = wanted.speed(run.plan)
        largest = largest_micro_batch(run, wanted.usable_bytes)
        seconds, at_largest = (iteration_seconds(run, speed, size) for size in (None, largest))
        hours = max(config.trainer.max_steps, 0) / 3600
        found = {
            "options": options,
            "memory_gib": total_bytes(run) / _GIB,
            "seconds_per_iteration": seconds,
            "hours": hours * seconds,
            "largest_micro_batch": largest,
            "hours_at_largest": hours * at_largest if largest else None,
        }
        print(_ROW.format(*_in_words(found)), flush=True)
        return found

    run = PlannedRun(plan, teacher, known)
    found = {
        "teacher": model.teacher,
        "latents": list(teacher.latent_shape),
        "gpu": "another card" if wanted.tflops or wanted.memory_gb else wanted.gpu,
        "gpus": plan.devices,
        "usable_gib": wanted.usable_bytes / _GIB,
        "tflop_per_s": wanted.speed(plan) / 1e12,
        "efficiency": wanted.efficiency,
        "launching_seconds": launching_seconds(run),
        "precision": plan.precision,
        "batch_size": plan.batch_size,
        "micro_batch_size": plan.micro_batch_size,
        "iterations": config.trainer.max_steps,
        "standing_gib": {name: size / _GIB for name, size in standing_bytes(run).items()},
        "passing_gib": {name: size / _GIB for name, size in passing_bytes(run).items()},
        "tflop_per_image": {name: f / 1e12 for name, f in iteration_flops(run).items()},
    }
    print(in_words(found), flush=True)
    options = levers(plan, can_checkpoint(teacher.network))
    rows = [row("as configured", {}), *(row(label, options[label]) for label in options)]
    if len(options) > 1:
        rows.append(
            row("all of these", {k: v for each in options.values() for k, v in each.items()})
        )
    found["options"] = rows
    if wanted.output:
        with (
            writing(wanted.output.parent, "estimate.output"),
            replacing(wanted.output) as temporary,
        ):
            temporary.write_text(json.dumps(found, indent=2) + "\n")
    return found


_NO_TEXT = "Encoding prompts on the CPU, or before the training, takes time that is not counted."
_ROW = "  {:<68}{:>7}{:>9}{:>13}{:>9}"


def _in_words(row: Mapping[str, Any]) -> tuple[Any, ...]:
    size = row["largest_micro_batch"]
    largest = (size, f"{row['hours_at_largest']:.1f}") if size else ("none", "")
    return row["options"], f"{row['memory_gib']:.1f}", f"{row['hours']:.1f}", *largest


def in_words(found: Mapping[str, Any]) -> str:
    """Format an estimate, up to the head of the table of options."""
    standing, passing = found["standing_gib"], found["passing_gib"]
    most = max(passing, key=passing.__getitem__)
    share = found["batch_size"] // found["gpus"]
    speed, efficiency = found["tflop_per_s"], found["efficiency"]
    reached = f"{efficiency:.0%} of the peak, as given" if efficiency else "as measured on an H200"
    work = found["tflop_per_image"] | {"together": sum(found["tflop_per_image"].values())}
    unit, factor = ("TFLOP", 1) if work["together"] > 0.1 else ("GFLOP", 1000)

    def lines(numbers: Mapping[str, float], factor: float = 1) -> list[str]:
        return [f"  {name:<32}{number * factor:8.2f}" for name, number in numbers.items()]

    return "\n".join(
        (
            f"{found['teacher']}: latents {'x'.join(map(str, found['latents']))}, "
            f"{found['precision']}, {found['gpus']} x {found['gpu']} "
            f"with {found['usable_gib']:.1f} GiB usable",
            f"batch {found['batch_size']}: {share} images per device, in micro-batches of "
            f"{found['micro_batch_size']}",
            "\nGiB on each device, all the time:",
            *lines(standing),
            "and one of these at a time (text and images: in excess of the gradients):",
            *lines(passing),
            f"at most {sum(standing.values()) + passing[most]:.2f}, with {most}",
            f"\n{unit} per image and iteration:",
            *lines(work, factor),
            f"\n{speed:.0f} TFLOP/s, {reached}",
            f"The host needs {found['launching_seconds']:.2f} s to launch a micro-batch of any "
            "size, as measured with an H200 (less if compiled).",
            *([] if found["tflop_per_image"]["text encoder"] else [_NO_TEXT]),
            f"\n{found['iterations']:,} iterations, one option at a time. The last two columns are "
            "the largest micro-batch that fits, and the hours with it:",
            _ROW.format("", "GiB", "hours", "micro-batch", "hours"),
        )
    )
