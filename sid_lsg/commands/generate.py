"""`generate`: pictures of prompts, in a folder."""

import json
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from PIL import Image

from sid_lsg.data.corpus import find_files, read_corpus
from sid_lsg.data.sequences import read_lines
from sid_lsg.distributed.processes import launch
from sid_lsg.files.replacing import check_writable, remove_leftovers, replacing, text_hash, writing
from sid_lsg.generation.folder import CAPTIONS, Picture, check_free, check_manifest, make_images
from sid_lsg.generation.models import ImageModel, Precision, SamplerName, load_model
from sid_lsg.images.folder import MANIFEST, SHEET
from sid_lsg.images.pixels import contact_sheet, save_png
from sid_lsg.messages.checks import refuse
from sid_lsg.messages.errors import UsageError

ARCHIVE = "images.npz"
_ON_SHEET = 100  # at most
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
    pictures = _pictures(prompt, prompts, column, seeds)
    root = Path(output).expanduser()
    if overwrite:
        needed = {picture.name for picture in pictures} | {SHEET, ARCHIVE, CAPTIONS}
        remedy = "--overwrite replaces only what `generate` has made. Choose another folder."
        check_free(root, remedy, needed)
    else:
        check_free(root, "Choose another folder, or give --overwrite (files of other names stay).")
    check_writable(root, "output")
    if exact and devices > 1:  # the processes are to add up in the order in which one would
        os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))
    fabric = launch(accelerator, devices, num_nodes)
    source = load_model(model, sampler, num_steps, guidance, resolution, dtype, fabric.device)
    _warn_of_cuts(source, pictures)
    about = source.about | {
        "exact": exact,
        "prompts_and_seeds_sha256": text_hash(f"{p.name} {p.seed} {p.prompt}" for p in pictures),
    }
    if fabric.is_global_zero:
        with writing(root, "output"):
            remove_leftovers(root)
            if overwrite:
                _clear(root)
            check_manifest(root, about, "output", "or give --overwrite")
    fabric.barrier()
    show = "images" if fabric.is_global_zero and progress else None
    with writing(root, "output"):
        made = make_images(
            source.one_by_one() if exact else source, pictures, root, batch_size, fabric, show
        )
        if fabric.is_global_zero:
            _write_sheet(root, pictures, made.paths)
            if npz:
                _write_archive(root / ARCHIVE, pictures, made.paths)
    took = f", {made.seconds_per_image:.3g} s each" if made.seconds_per_image else ""
    rank_zero_info(f"{len(pictures)} images in {root}{took}; see {root / SHEET}.")


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


def _pictures(
    prompt: str | None, prompts: str | list[str] | None, column: str | None, seeds: str | None
) -> list[Picture]:
    """List what to make: every prompt with every seed."""
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
        Picture(f"{line:06d}{'' if chosen is None else f'-{seed}'}.png", text, seed)
        for line, text in lines
        for seed in (chosen if chosen is not None else [line])
    ]


def _clear(root: Path) -> None:
    """Delete what an earlier command has made; its manifest, which says so, goes last."""
    captions = root / CAPTIONS
    if not (root / MANIFEST).is_file():
        return
    try:
        rows = [json.loads(row) for row in read_lines(captions)] if captions.is_file() else []
        names = [Path(row["file_name"]).name for row in rows]
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"--overwrite: cannot tell what to replace: {str(captions)!r} is not as `generate` "
            f"writes it ({error}). Choose another folder, or delete that one."
        ) from error
    for name in (*names, SHEET, ARCHIVE, CAPTIONS, MANIFEST):
        (root / name).unlink(missing_ok=True)


def _warn_of_cuts(source: ImageModel, pictures: Sequence[Picture]) -> None:
    """Say what of long prompts the model does not see."""
    texts = dict.fromkeys(picture.prompt for picture in pictures)
    cut = [(text, lost) for text in texts if (lost := source.cut_off(text))]
    for text, lost in cut[:_SHOWN_CUTS]:
        rank_zero_warn(f"The prompt {text[:40]!r}... is too long: not seen is {lost!r}.")
    if len(cut) > _SHOWN_CUTS:
        rank_zero_warn(f"{len(cut) - _SHOWN_CUTS} more prompts are too long.")


def _write_sheet(root: Path, pictures: Sequence[Picture], paths: Sequence[Path]) -> None:
    """Show the first images on one page, a prompt's seeds side by side."""
    shown = pictures[:_ON_SHEET]
    per_prompt = sum(picture.prompt == pictures[0].prompt for picture in shown)
    captions = [f"{picture.prompt} [{picture.seed}]" for picture in shown]
    columns = per_prompt if 1 < per_prompt <= 10 else None
    tiles = [Image.open(path) for path in paths[: len(shown)]]
    save_png(contact_sheet(tiles, captions, columns), root / SHEET)


def _write_archive(path: Path, pictures: Sequence[Picture], paths: Sequence[Path]) -> None:
    """Write all images as arrays, one after the other, so that memory does not grow with them."""
    with Image.open(paths[0]) as first:
        shape = (len(paths), first.height, first.width, 3)
    others = {
        "seeds": np.array([picture.seed for picture in pictures], dtype=np.uint64),
        "prompts": np.array([picture.prompt for picture in pictures]),
    }
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        with archive.open("images.npy", "w", force_zip64=True) as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_2_0(file, header)
            for name in paths:
                with Image.open(name) as image:
                    file.write(np.asarray(image).tobytes())
        for key, values in others.items():
            with archive.open(f"{key}.npy", "w") as file:
                np.lib.format.write_array(file, values, allow_pickle=False)
