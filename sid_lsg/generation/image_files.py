"""Sample a model's images into PNG files that store the prompt, seed and model."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from lightning.fabric import Fabric
from PIL.PngImagePlugin import PngInfo
from torch import Tensor
from tqdm import tqdm

from sid_lsg.distributed.processes import share_of
from sid_lsg.generation.models import ImageModel
from sid_lsg.images.pixels import to_pil
from sid_lsg.images.writing import PngWriter
from sid_lsg.messages.errors import UsageError


class ImageRequest(NamedTuple):
    """An image to sample: its file name, prompt and seed."""

    name: str
    prompt: str
    seed: int


class ImageFiles(NamedTuple):
    """The image files in order, and the seconds per image; None if no image was missing."""

    paths: list[Path]
    seconds_per_image: float | None


def sample_files(
    model: ImageModel,
    requests: Sequence[ImageRequest],
    folder: Path,
    batch_size: int,
    fabric: Fabric,
    progress: str | None = None,
) -> ImageFiles:
    """Sample the images that have no file yet. Call it on all processes.

    Each process samples its share of the batches. The batches do not depend on the number of
    processes.

    Args:
        model: The model to sample.
        requests: The images.
        folder: The folder of the files.
        batch_size: Images per batch.
        fabric: The processes.
        progress: Label of a progress bar; by default none is shown.

    Raises:
        UsageError: If an image is not finite, or a batch does not fit into memory.
        OSError: If a file cannot be written; finished images remain.
    """
    paths = [folder / request.name for request in requests]
    mine = share_of(len(requests), batch_size)
    missing = [batch for batch in mine if not all(paths[i].is_file() for i in batch)]
    total, left = (sum(map(len, batches)) for batches in (mine, missing))
    seconds = 0.0
    with (
        PngWriter() as writer,
        tqdm(
            total=total, initial=total - left, desc=progress, disable=progress is None, leave=False
        ) as bar,
    ):
        for batch in missing:
            chosen = [requests[i] for i in batch]
            start = time.perf_counter()
            try:
                images = model.sample([r.prompt for r in chosen], [r.seed for r in chosen]).cpu()
            except torch.OutOfMemoryError as error:
                raise UsageError(
                    f"--batch_size: {len(chosen)} images of {model.about['model']!r} at a time "
                    f"take more memory than the device has ({str(error).splitlines()[0]}). Give a "
                    "smaller one; finished images are kept."
                ) from error
            seconds += time.perf_counter() - start
            _check_finite(images, chosen, model)
            for request, image in zip(chosen, to_pil(images), strict=True):
                writer.save(image, folder / request.name, png_text(request, model.about["model"]))
            bar.update(len(batch))
    fabric.barrier()
    return ImageFiles(paths, seconds / left if left else None)


def png_text(request: ImageRequest, model: str) -> PngInfo:
    """Return the text chunks of an image's PNG file: prompt, seed and model."""
    text = PngInfo()
    text.add_itxt("prompt", request.prompt)
    text.add_text("seed", str(request.seed))
    text.add_itxt("model", model)
    return text


def _check_finite(images: Tensor, requests: Sequence[ImageRequest], model: ImageModel) -> None:
    dtype = model.about["dtype"]
    for (name, *_), finite in zip(requests, images.isfinite().flatten(1).all(1), strict=True):
        if not finite and dtype == "float16":
            raise UsageError(
                f"--dtype: image {name} is not finite in float16. Use float32 or bfloat16."
            )
        if not finite:
            raise UsageError(
                f"--model: image {name} is not finite in {dtype}. The weights of "
                f"{model.about['model']!r} may be damaged, or the settings may not suit it. Try "
                "another model, --num_steps or --sampler."
            )
