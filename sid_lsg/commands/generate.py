"""`generate`: pictures of prompts, in a folder."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sid_lsg.files.replacing import check_writable, text_hash
from sid_lsg.messages.checks import refuse
from sid_lsg.messages.errors import UsageError
from sid_lsg.options.choices import Precision, SamplerName

if TYPE_CHECKING:
    from sid_lsg.generation.image_files import ImageRequest
    from sid_lsg.generation.models import ImageModel

_MOST_SEEDS = 10_000_000
_SHOWN_CUTS = 5


def generate(
    model: str,
    prompt: str | None = None,
    prompts: str | list[str] | None = None,
    column: str | None = None,
    seeds: str | None = None,
    output: str = "images",
    num_steps: int | None = None,
    sampler: SamplerName = "auto",
    guidance: float | None = None,
    resolution: int | None = None,
    dtype: Precision = "float32",
    batch_size: int = 8,
    exact: bool = True,
    npz: bool = False,
    overwrite: bool = False,
    accelerator: str = "auto",
    devices: int = 1,
    num_nodes: int = 1,
    progress: bool = True,
) -> None:
    """Make pictures of prompts.

    Writes PNG files that hold their prompt, seed and model, a contact sheet, and metadata.jsonl to
    the output folder. An interrupted command continues where it stopped.

    Args:
        model: A run directory or a checkpoint of it, a folder that this project exported, any
            diffusers folder, or a Hub id.
        prompt: What to show.
        prompts: Instead: files of prompts, as for `fit`. The image of line i (from 0, blank lines
            count) has the file name i and, unless --seeds are given, the seed i.
        column: Column of the prompts in .jsonl, .csv and .parquet files.
        seeds: Seeds, such as 0-9,42; each prompt is shown with each of them. By default 0.
        output: Folder of the pictures.
        num_steps: Steps: the training's by default for a generator, to be given for all others.
        sampler: `generator`: as the training samples; `ddim`: a teacher, as the training's own
            comparison samples it; `pipeline`: the model's own diffusers pipeline and scheduler;
            `auto`: `generator` for what this project trained, else `pipeline`.
        guidance: Guidance scale, to be given for all but generators; 0 and 1 mean none. `ddim`
            takes nothing between them.
        resolution: Side of the images in pixels; by default the model's.
        dtype: Of the networks.
        batch_size: Images at a time.
        exact: Send each image through the networks alone: files are then identical whatever the
            batch size and the number of devices. Otherwise a whole batch goes through together,
            which is faster, and a pixel may differ by a grey level.
        npz: Write images.npz too: images [N, H, W, 3] uint8, seeds [N], prompts [N].
        overwrite: Replace what an earlier command has made in the output folder.
        accelerator: auto, cpu, gpu, ...
        devices: How many devices of a machine; each makes its share.
        num_nodes: How many machines.
        progress: Show a progress bar.

    Raises:
        UsageError: For anything that cannot be made as it is asked for.
    """
    if batch_size < 1:
        refuse("batch_size", batch_size, "at least 1")
    import torch
    from lightning.pytorch.utilities import rank_zero_info

    from sid_lsg.distributed.processes import launch
    from sid_lsg.generation.folder import ImageFolder
    from sid_lsg.generation.models import load_model
    from sid_lsg.images.folder import SHEET

    requests = _requests(prompt, prompts, column, seeds)
    root = Path(output).expanduser()
    folder = ImageFolder(root, requests, overwrite)
    check_writable(root, "output")
    if exact and devices > 1:  # the processes are to add up in the order in which one would
        os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))
    fabric = launch(accelerator, devices, num_nodes)
    source = load_model(model, sampler, num_steps, guidance, resolution, dtype, fabric.device)
    _warn_of_cuts(source, requests)
    made = folder.write(
        source.one_by_one() if exact else source,
        {
            "exact": exact,
            "prompts_and_seeds_sha256": text_hash(
                f"{request.name} {request.seed} {request.prompt}" for request in requests
            ),
        },
        batch_size,
        fabric,
        sheet=True,
        archive=npz,
        progress="images" if fabric.is_global_zero and progress else None,
    )
    took = f", {made.seconds_per_image:.3g} s each" if made.seconds_per_image else ""
    rank_zero_info(f"{len(requests)} images in {root}{took}; see {root / SHEET}.")


def parse_seeds(text: str) -> list[int]:
    """Read numbers and ranges of numbers, such as 0-9,42; both ends of a range belong to it.

    Raises:
        UsageError: If it is anything else.
    """
    seeds: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        ends = (first, last) if dash else (first, first)
        if not all(end.strip().isdecimal() for end in ends):
            raise UsageError(
                f"--seeds: {part.strip()!r} is no number and no range of numbers. Give seeds such "
                "as 0-9,42."
            )
        begin, end = map(int, ends)
        if end < begin or end >= 2**64 or len(seeds) + end - begin >= _MOST_SEEDS:
            raise UsageError(
                f"--seeds: {part.strip()!r} is empty or too large. Ranges begin with the smaller "
                f"number; seeds are below 2**64, and at most {_MOST_SEEDS:,}."
            )
        seeds += range(begin, end + 1)
    if len(set(seeds)) < len(seeds):
        raise UsageError(f"--seeds: {text!r} names a seed twice. Name each once.")
    return seeds


def _requests(
    prompt: str | None, prompts: str | list[str] | None, column: str | None, seeds: str | None
) -> "list[ImageRequest]":
    """List the images: every prompt with every seed."""
    from sid_lsg.data.corpus import find_files, read_corpus
    from sid_lsg.generation.image_files import ImageRequest

    if (prompt is None) == (prompts is None):
        raise UsageError('Give either --prompt "..." or --prompts FILE.')
    if prompt is not None:
        if not prompt.strip():
            raise UsageError("--prompt is empty. Say what the picture is to show.")
        try:
            prompt.encode()
        except UnicodeEncodeError:
            raise UsageError(
                "--prompt is not UTF-8. Give it so, or in a file by --prompts."
            ) from None
        lines = [(0, prompt.strip())]
    elif not prompts:
        raise UsageError("--prompts is empty. Name a file with a prompt per line.")
    else:
        corpus = read_corpus(find_files(prompts, "--prompts"), column, "--prompts")
        lines = [(corpus.row(position), text) for position, text in enumerate(corpus)]
    chosen = parse_seeds(seeds) if seeds is not None else None
    if chosen is None and prompt is not None:
        chosen = [0]
    return [
        ImageRequest(f"{line:06d}{'' if chosen is None else f'-{seed}'}.png", text, seed)
        for line, text in lines
        for seed in (chosen if chosen is not None else [line])
    ]


def _warn_of_cuts(source: "ImageModel", requests: "Sequence[ImageRequest]") -> None:
    """Say what of long prompts the model does not see."""
    from lightning.pytorch.utilities import rank_zero_warn

    texts = dict.fromkeys(request.prompt for request in requests)
    cut = [(text, lost) for text in texts if (lost := source.cut_off(text))]
    for text, lost in cut[:_SHOWN_CUTS]:
        rank_zero_warn(f"The prompt {text[:40]!r}... is too long: not seen is {lost!r}.")
    if len(cut) > _SHOWN_CUTS:
        rank_zero_warn(f"{len(cut) - _SHOWN_CUTS} more prompts are too long.")
