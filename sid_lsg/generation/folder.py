"""Images of a model in a folder, continued where an interrupted command stopped."""

import json
import time
from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lightning.fabric import Fabric
from PIL.PngImagePlugin import PngInfo
from torch import Tensor
from tqdm import tqdm

from sid_lsg.distributed.processes import share_of
from sid_lsg.files.replacing import replacing
from sid_lsg.generation.models import ImageModel
from sid_lsg.images.folder import MANIFEST
from sid_lsg.images.pixels import save_png, to_pil
from sid_lsg.messages.errors import UsageError

CAPTIONS = "metadata.jsonl"  # as Hugging Face's `imagefolder` format names it


class Picture(NamedTuple):
    """An image to make: its file's name, and what it depends on."""

    name: str
    prompt: str
    seed: int


class Made(NamedTuple):
    """The images' files, in order, and what sampling one took here; None if all were there."""

    paths: list[Path]
    seconds_per_image: float | None


def make_images(
    model: ImageModel,
    pictures: Sequence[Picture],
    folder: Path,
    batch_size: int,
    fabric: Fabric,
    progress: str | None = None,
) -> Made:
    """Write images, unless they are there.

    Each process makes its share of the batches, which are the same however many processes there
    are. `metadata.jsonl` gets every image's prompt and seed, and so does the image itself.

    Args:
        model: What to sample.
        pictures: What to make.
        folder: Where to write it.
        batch_size: Images at a time.
        fabric: The processes.
        progress: Name for a progress bar; none by default.

    Raises:
        UsageError: If an image is not finite.
        OSError: If a file cannot be written; finished images stay.
    """
    paths = [folder / picture.name for picture in pictures]
    if fabric.is_global_zero:
        with (
            replacing(folder / CAPTIONS) as temporary,
            temporary.open("w", encoding="utf-8") as file,
        ):
            for name, prompt, seed in pictures:
                row = {"file_name": name, "text": prompt, "seed": seed}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
    mine = share_of(len(pictures), batch_size)
    missing = [batch for batch in mine if not all(paths[i].is_file() for i in batch)]
    total, left = (sum(map(len, batches)) for batches in (mine, missing))
    seconds = 0.0
    with tqdm(
        total=total, initial=total - left, desc=progress, disable=progress is None, leave=False
    ) as bar:
        for batch in missing:
            chosen = [pictures[i] for i in batch]
            start = time.perf_counter()
            images = model.sample([p.prompt for p in chosen], [p.seed for p in chosen]).cpu()
            seconds += time.perf_counter() - start
            _check_finite(images, chosen, model)
            for picture, image in zip(chosen, to_pil(images), strict=True):
                save_png(image, folder / picture.name, about_image(picture, model.about["model"]))
            bar.update(len(batch))
    fabric.barrier()
    return Made(paths, seconds / left if left else None)


def check_free(folder: Path, remedy: str, needed: Container[str] | None = None) -> None:
    """Refuse a folder with files that no command of this project has made.

    Args:
        folder: The folder.
        remedy: What to do, for the message.
        needed: The names that matter; by default all.

    Raises:
        UsageError: If there is one.
    """
    if not folder.is_dir() or (folder / MANIFEST).is_file():
        return
    names = (path.name for path in sorted(folder.iterdir()) if path.suffix != ".tmp")
    if (other := next((n for n in names if needed is None or n in needed), None)) is not None:
        raise UsageError(
            f"--output: {str(folder)!r} holds other things, such as {other!r}. {remedy}"
        )


def about_image(picture: Picture, model: str) -> PngInfo:
    """Say in a PNG file what it shows: prompt, seed and model."""
    about = PngInfo()
    about.add_itxt("prompt", picture.prompt)
    about.add_text("seed", str(picture.seed))
    about.add_itxt("model", model)
    return about


def _check_finite(images: Tensor, pictures: Sequence[Picture], model: ImageModel) -> None:
    dtype = model.about["dtype"]
    for (name, *_), finite in zip(pictures, images.isfinite().flatten(1).all(1), strict=True):
        if not finite and dtype == "float16":
            raise UsageError(
                f"--dtype: image {name} is not finite in float16. Use float32 or bfloat16."
            )
        if not finite:
            raise UsageError(
                f"--model: image {name} is not finite in {dtype}: {model.about['model']!r} has bad "
                "weights, or cannot be sampled so. Try another one, --num_steps or --sampler."
            )


def check_manifest(
    folder: Path, about: dict[str, Any], option: str, remedy: str = "or delete that one"
) -> None:
    """Let a folder's images be continued by the same model under the same settings alone.

    Where no image is finished, nothing is continued: whatever ended that command may be corrected.

    Raises:
        UsageError: If they were made otherwise, naming what differs.
    """
    path = folder / MANIFEST
    if not path.is_file() or next(folder.glob("*.png"), None) is None:
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(about, indent=2) + "\n")
        return
    try:
        earlier = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"--{option}: cannot read {str(path)!r} ({error}).") from error
    for name in (*about, *earlier):
        if about.get(name) != earlier.get(name):
            what = f"{name} is {earlier.get(name)!r}, and now {about.get(name)!r}"
            if name.endswith("_sha256"):
                what = f"{name.removesuffix('_sha256').replace('_', ' ')} differ"
            raise UsageError(
                f"--{option}: {str(folder)!r} holds images that were made otherwise: their {what}. "
                f"Choose another folder, {remedy}."
            )
