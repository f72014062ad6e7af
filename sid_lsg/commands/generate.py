"""`generate`: write images of prompts to a folder."""

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
    """Generate images of prompts.

    Writes to the output folder: PNG files that contain their prompt, seed and model, a contact
    sheet, and metadata.jsonl. The same command continues after an interruption.

    Args:
        model: A run directory, one of its checkpoints, an exported folder, any diffusers folder, or
            a Hub id.
        prompt: A prompt.
        prompts: Files of prompts, as for `fit`, instead of one prompt. The image of line i (from 0,
            counting blank lines) has file name i and, without --seeds, seed i.
        column: Column of the prompts in .jsonl, .csv, .tsv and .parquet files.
        seeds: Seeds, for example 0-9,42; there is an image of each prompt with each seed. By
            default 0 for one prompt.
        output: Folder to write the images to.
        num_steps: Sampling steps; by default those of the training for a generator of this project,
            required for other models.
        sampler: `generator`: as in training. `ddim`: a teacher, as in the training's final
            comparison. `pipeline`: the diffusers pipeline and scheduler of the model. `auto`:
            `generator` for generators of this project, otherwise `pipeline`.
        guidance: Guidance scale; required for models that are not generators of this project. 0 and
            1 mean no guidance; `ddim` accepts no value between them.
        resolution: Side of the images in pixels; by default the model's.
        dtype: Precision of the networks.
        batch_size: Images per batch.
        exact: Run the networks on one image at a time, so files do not depend on the batch size and
            the number of devices. Otherwise they run on a whole batch, which is faster, but a pixel
            may differ by a grey level.
        npz: Also write images.npz: images [N, H, W, 3] uint8, seeds [N], prompts [N].
        overwrite: Replace the results of an earlier command in the output folder.
        accelerator: auto, cpu, gpu, ...
        devices: Number of devices per machine, which share the images.
        num_nodes: Number of machines.
        progress: Show a progress bar.

    Raises:
        UsageError: If the options or the model do not allow these images.
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
    if exact and devices > 1:  # so that sums are in the same order as in one process
        os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))
    fabric = launch(accelerator, devices, num_nodes)
    source = load_model(model, sampler, num_steps, guidance, resolution, dtype, fabric.device)
    warn_of_cuts(source, requests)
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
    """Parse numbers and inclusive ranges, such as 0-9,42.

    Raises:
        UsageError: If the text is anything else, or a seed appears twice.
    """
    seeds: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        ends = (first, last) if dash else (first, first)
        if not all(end.strip().isdecimal() for end in ends):
            raise UsageError(
                f"--seeds: {part.strip()!r} is neither a number nor a range. Give seeds such as "
                "0-9,42."
            )
        begin, end = map(int, ends)
        if end < begin or end >= 2**64 or len(seeds) + end - begin >= _MOST_SEEDS:
            raise UsageError(
                f"--seeds: {part.strip()!r} is empty or too large. Ranges start with the smaller "
                f"number. Seeds are below 2**64, and there can be {_MOST_SEEDS:,} at most."
            )
        seeds += range(begin, end + 1)
    if len(set(seeds)) < len(seeds):
        raise UsageError(f"--seeds: {text!r} contains a seed twice. Give each seed once.")
    return seeds


def _requests(
    prompt: str | None, prompts: str | list[str] | None, column: str | None, seeds: str | None
) -> "list[ImageRequest]":
    """List the images: each prompt with each seed."""
    from sid_lsg.data.corpus import find_files, read_corpus
    from sid_lsg.generation.image_files import ImageRequest

    if (prompt is None) == (prompts is None):
        raise UsageError('Give either --prompt "..." or --prompts FILE.')
    if prompt is not None:
        if not prompt.strip():
            raise UsageError("--prompt is empty. Give a description of the image.")
        try:
            prompt.encode()
        except UnicodeEncodeError:
            raise UsageError(
                "--prompt is not UTF-8. Give UTF-8, or a file with --prompts."
            ) from None
        lines = [(0, prompt.strip())]
    elif not prompts:
        raise UsageError("--prompts is empty. Give a file with one prompt per line.")
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


def warn_of_cuts(source: "ImageModel", requests: "Sequence[ImageRequest]") -> None:
    """Warn about parts of long prompts that the model does not see."""
    from lightning.pytorch.utilities import rank_zero_warn

    texts = dict.fromkeys(request.prompt for request in requests)
    cut = [(text, lost) for text in texts if (lost := source.cut_off(text))]
    for text, lost in cut[:_SHOWN_CUTS]:
        rank_zero_warn(f"The prompt {text[:40]!r}... is too long: the model does not see {lost!r}.")
    if len(cut) > _SHOWN_CUTS:
        rank_zero_warn(f"{len(cut) - _SHOWN_CUTS} more prompts are too long.")
