"""`benchmark`: measure the speed and memory of a config on this machine."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sid_lsg.commands.parser import answer_help
from sid_lsg.files.replacing import replacing, writing
from sid_lsg.messages.errors import UsageError
from sid_lsg.options.benchmark import Benchmark

if TYPE_CHECKING:
    import torch


def benchmark(args: Sequence[str]) -> None:
    """Measure the speed and memory of a config on this machine, in total and by part.

    Trains for some iterations on fixed prompts and keeps no model. Prints the numbers, and saves
    them with a description of the machine.

    Args:
        args: Options of `fit`, and those of `Benchmark` after `--benchmark.`.

    Raises:
        UsageError: If an option is out of range, an optimizer takes no step, or the report cannot
            be written.
    """
    answer_help(benchmark, Benchmark, args)
    import torch

    from sid_lsg.benchmark.machine import clock, describe, threads
    from sid_lsg.benchmark.report import markdown
    from sid_lsg.benchmark.sweep import compared, measured
    from sid_lsg.commands.fit_options import FitOptions
    from sid_lsg.costs.options import plan_of
    from sid_lsg.training.optimizer_options import check_steps, optimizers_of
    from sid_lsg.training.trainer_options import check_trainer

    cli = FitOptions(benchmark, Benchmark, args)
    options = Benchmark(**cli.config.benchmark.as_dict())
    if cli.config.model.real_data:
        raise UsageError("--model.real_data: `benchmark` has no real images. Leave the option out.")
    with writing(options.output.parent, "benchmark.output"):
        options.output.parent.mkdir(parents=True, exist_ok=True)
    device = _device(cli.config.trainer.accelerator)
    check_trainer(cli.config.trainer)
    plan_of(cli.config, gpus=1)  # checks the sizes of batches
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

        measure_all = compared if options.compare_official else measured
        found = measure_all(cli, options, device, save)
    print(markdown(about | found))


def _save(result: dict[str, Any], output: Path) -> None:
    """Write the results so far, which remain if the command is stopped."""
    from sid_lsg.benchmark.report import markdown

    with writing(output.parent, "benchmark.output"):
        for suffix, text in ((".json", json.dumps(result, indent=1)), (".md", markdown(result))):
            with replacing(output.with_suffix(suffix)) as temporary:
                temporary.write_text(text, encoding="utf-8")


def _device(accelerator: str) -> "torch.device":
    """Return the device that the Trainer will use.

    Raises:
        UsageError: If there is none of this kind.
    """
    import torch

    cuda = torch.cuda.is_available()
    if accelerator not in ("auto", "cpu", *(["gpu", "cuda"] * cuda)):
        found = "a CUDA device and the CPU" if cuda else "no CUDA device; give auto or cpu"
        raise UsageError(f"--trainer.accelerator {accelerator}: `benchmark` finds {found}.")
    return torch.device("cuda", 0) if cuda and accelerator != "cpu" else torch.device("cpu")
