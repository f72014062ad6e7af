"""Write Fashion-MNIST images with captions, as real images for the embedded teacher.

    python -m sid_lsg.demo.images --output runs/fashion_images

The folder has the format of --data.real_images: PNG files and a `metadata.jsonl`. The embedded
teacher was trained on images of this kind. Debian's package `dataset-fashion-mnist` contains the
photographs. Folders with another `--change` are references of a kind that it was not trained on.
"""

import json
import sys
from pathlib import Path
from typing import Literal

import torch

from sid_lsg.data.captions import METADATA
from sid_lsg.demo.dataset import (
    BACKGROUNDS,
    COLOURS,
    DATA_DIR,
    HELD_OUT_BACKGROUNDS,
    HELD_OUT_COLOURS,
    Palette,
    draw,
    load_photographs,
    moved,
    scaled,
)
from sid_lsg.files.replacing import check_writable, replacing
from sid_lsg.images.pixels import save_png, to_pil
from sid_lsg.messages.checks import refuse
from sid_lsg.messages.errors import UsageError


def images(
    output: Path,
    data_dir: str = DATA_DIR,
    num_images: int = 3200,
    seed: int = 7,
    split: Literal["train", "t10k"] = "train",
    skip: int = 0,
    change: Literal["none", "colours", "backgrounds", "position", "scale"] = "none",
) -> None:
    """Write photographs in random colours, on random backgrounds, with their captions.

    Args:
        output: Output folder; must be new or empty.
        data_dir: Folder with Fashion-MNIST's IDX files.
        num_images: Number of images.
        seed: Seed for the choice of photographs, colours and backgrounds.
        split: Fashion-MNIST's training photographs (60,000) or test photographs (10,000).
        skip: Leave out this many of the shuffled photographs. Parts of one seed do not overlap.
        change: What differs from the images that the teacher was trained on: other colours of the
            garments, other backgrounds, garments moved by up to 4 pixels, or of three quarters the
            size.

    Raises:
        UsageError: If an option is out of range, or a folder cannot be used.
    """
    photographs = load_photographs(data_dir, split)
    if not 0 <= skip < len(photographs.labels):
        refuse("skip", skip, f"0 to {len(photographs.labels) - 1}")
    if not 1 <= num_images <= len(photographs.labels) - skip:
        refuse("num_images", num_images, f"1 to {len(photographs.labels) - skip}")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        refuse("output", str(output), "a folder that is new or empty")
    check_writable(output, "output")
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(photographs.labels), generator=generator)
    chosen = order[skip : skip + num_images]
    if change == "position":
        photographs = moved(photographs, generator)
    elif change == "scale":
        photographs = scaled(photographs)
    palette = Palette(
        HELD_OUT_COLOURS if change == "colours" else COLOURS,
        HELD_OUT_BACKGROUNDS if change == "backgrounds" else BACKGROUNDS,
    )
    composed, captions = draw(photographs, chosen, generator, palette)
    texts = palette.captions()
    rows = []
    for number, (image, caption) in enumerate(zip(to_pil(composed), captions, strict=True)):
        name = f"{number:05}.png"
        save_png(image, output / name)
        rows.append(json.dumps({"file_name": name, "text": texts[caption]}))
    # Written last: without it the folder is not valid.
    with replacing(output / f"{METADATA}.jsonl") as temporary:
        temporary.write_text("\n".join(rows) + "\n")


if __name__ == "__main__":
    from jsonargparse import auto_cli

    try:
        auto_cli(images, as_positional=False)
    except UsageError as error:
        sys.exit(f"error: {error}")
