"""Images of a model in a folder, continued where an interrupted command stopped."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lightning.fabric import Fabric
from PIL.PngImagePlugin import PngInfo
from torch import Tensor
from tqdm import tqdm

from sid_lsg.errors import UsageError
from sid_lsg.files import replacing
from sid_lsg.images import save_png, to_pil
from sid_lsg.processes import share_of
from sid_lsg.samplers import ImageModel

MANIFEST = "images.json"
CAPTIONS = "metadata.jsonl"  # as Hugging Face's `imagefolder` format names it


class Made(NamedTuple):
    """The images' files, in order, and what sampling one took here; None if all were there."""

    paths: list[Path]
    seconds_per_image: float | None


def make_images(
    model: ImageModel,
    prompts: Sequence[str],
    folder: Path,
    batch_size: int,
    fabric: Fabric,
    progress: str | None = None,
) -> Made:
    """Write the image of each prompt, with the prompt's place as its seed, unless it is there.

    Each process makes its share of the batches, which are the same however many processes there
    are. `metadata.jsonl` gets every image's prompt and seed.

    Args:
        model: What to sample.
        prompts: One for each image.
        folder: Where to write 0000000.png, 0000001.png, ...
        batch_size: Images at a time.
        fabric: The processes.
        progress: Name for a progress bar; none by default.

    Raises:
        UsageError: If an image is not finite.
        OSError: If a file cannot be written; finished images stay.
    """
    paths = [folder / f"{index:07d}.png" for index in range(len(prompts))]
    if fabric.is_global_zero:
        with replacing(folder / CAPTIONS) as temporary, temporary.open("w") as file:
            for index, (path, text) in enumerate(zip(paths, prompts, strict=True)):
                row = {"file_name": path.name, "text": text, "seed": index}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
    mine = share_of(len(prompts), batch_size)
    missing = [batch for batch in mine if not all(paths[i].is_file() for i in batch)]
    total, left = (sum(map(len, batches)) for batches in (mine, missing))
    seconds = 0.0
    with tqdm(
        total=total, initial=total - left, desc=progress, disable=progress is None, leave=False
    ) as bar:
        for batch in missing:
            start = time.perf_counter()
            images = model.sample([prompts[i] for i in batch], batch).cpu()
            seconds += time.perf_counter() - start
            _check_finite(images, batch, model)
            for index, picture in zip(batch, to_pil(images), strict=True):
                about = PngInfo()
                about.add_itxt("prompt", prompts[index])
                about.add_text("seed", str(index))
                about.add_text("model", str(model.about["model"]))
                save_png(picture, paths[index], about)
            bar.update(len(batch))
    fabric.barrier()
    return Made(paths, seconds / left if left else None)


def _check_finite(images: Tensor, indices: Sequence[int], model: ImageModel) -> None:
    for index, finite in zip(indices, images.isfinite().flatten(1).all(1).tolist(), strict=True):
        if not finite:
            raise UsageError(
                f"--dtype: image {index} is not finite in {model.about['dtype']}. Use float32 or "
                "bfloat16."
            )


def check_manifest(folder: Path, about: dict[str, Any], option: str) -> None:
    """Let a folder's images be continued by the same model under the same settings alone.

    Raises:
        UsageError: If they were made otherwise, naming what differs.
    """
    path = folder / MANIFEST
    if not path.is_file():
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(about, indent=2) + "\n")
        return
    try:
        earlier = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"--{option}: cannot read {str(path)!r} ({error}).") from error
    for name in (*about, *earlier):
        if about.get(name) != earlier.get(name):
            raise UsageError(
                f"--{option}: {str(folder)!r} holds images that were made otherwise: their {name} "
                f"is {earlier.get(name)!r}, and now {about.get(name)!r}. Choose another folder, or "
                "delete that one."
            )
