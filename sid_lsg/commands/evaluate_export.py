"""`evaluate --export`: write a model's images for the official scorer of a benchmark."""

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sid_lsg.files.replacing import check_writable, text_hash, writing
from sid_lsg.messages.checks import refuse
from sid_lsg.messages.errors import UsageError

_USED = {
    "export", "model", "prompts", "output", "sampler", "num_steps", "guidance", "resolution",
    "dtype", "batch_size", "accelerator", "devices", "num_nodes", "progress",
}  # fmt: skip


def export_images(command: Callable[..., None], options: Mapping[str, Any]) -> None:
    """Sample the images of a benchmark's prompts, and lay them out for its scorer.

    Args:
        command: The function `evaluate`, whose defaults are those of its options.
        options: Its options.

    Raises:
        UsageError: If an option is of no use here, or the files of prompts are not the benchmark's.
    """
    defaults = inspect.signature(command).parameters
    for name, value in options.items():
        if name not in _USED and value != defaults[name].default:
            raise UsageError(
                f"--{name} has no effect with --export, which writes images and no scores. Leave "
                "it out."
            )
    benchmark, model = options["export"], options["model"]
    if not model or not options["prompts"]:
        raise UsageError(f"--export {benchmark} needs --model, and the benchmark's --prompts.")
    if options["batch_size"] < 1:
        refuse("batch_size", options["batch_size"], "at least 1")
    from lightning.pytorch.utilities import rank_zero_info

    from sid_lsg.commands.generate import warn_of_cuts
    from sid_lsg.data.corpus import find_files
    from sid_lsg.distributed.processes import launch
    from sid_lsg.generation.benchmarks import lay_out, read_prompts, requests
    from sid_lsg.generation.folder import ImageFolder
    from sid_lsg.generation.models import check_settings, load_model
    from sid_lsg.images.folder import MANIFEST
    from sid_lsg.metrics.compared import IMAGES

    sampling = (options["sampler"], options["num_steps"], options["guidance"])
    check_settings(*sampling)
    root = Path(options["output"]).expanduser()
    layout = root / benchmark
    items = read_prompts(benchmark, find_files(options["prompts"], "--prompts"))
    wanted = requests(benchmark, items)
    folder = ImageFolder(root / IMAGES, wanted)
    if layout.exists() and not (root / IMAGES / MANIFEST).is_file():
        raise UsageError(
            f"--output: {str(layout)!r} exists, and no `evaluate --export` wrote it. Choose "
            "another folder."
        )
    check_writable(root, "output")
    fabric = launch(options["accelerator"], options["devices"], options["num_nodes"])
    source = load_model(model, *sampling, options["resolution"], options["dtype"], fabric.device)
    warn_of_cuts(source, wanted)
    each = len(wanted) // len(items)
    settings = {
        "benchmark": benchmark,
        "seeds": f"image i: prompt i // {each}, seed i",
        "prompts_sha256": text_hash(item.prompt for item in items),
    }
    show = fabric.is_global_zero and options["progress"]
    made = folder.write(
        source, settings, options["batch_size"], fabric, progress="images" if show else None
    )
    if fabric.is_global_zero:
        with writing(root, "output"):
            scorer = lay_out(benchmark, items, made.paths, layout)
        rank_zero_info(f"{len(wanted):,} images in {layout}. Score them in the benchmark's folder:")
        print(scorer)
