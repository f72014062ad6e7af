"""Write Fashion-MNIST images with captions, as real images for the embedded teacher.

    python -m sid_lsg.demo.images --output runs/fashion_images

The folder has the format of --data.real_images: PNG files and a `metadata.jsonl`. The embedded
teacher was trained on images of this kind. Debian's package `dataset-fashion-mnist` contains the
photographs.
"""

import json
import sys
from pathlib import Path

import torch

from sid_lsg.data.captions import METADATA
from sid_lsg.demo.dataset import CAPTIONS, DATA_DIR, draw, load_photographs
from sid_lsg.files.replacing import check_writable, replacing
from sid_lsg.images.pixels import save_png, to_pil
from sid_lsg.messages.checks import refuse
from sid_lsg.messages.errors import UsageError


def images(output: Path, data_dir: str = DATA_DIR, num_images: int = 3200, seed: int = 7) -> None:
    """Write training photographs in random colours, on random backgrounds, with their captions.

    Args:
        output: Output folder; must be new or empty.
        data_dir: Folder with Fashion-MNIST's IDX files.
        num_images: Number of images, at most 60,000.
        seed: Seed for the choice of photographs, colours and backgrounds.

    Raises:
        UsageError: If an option is out of range, or a folder cannot be used.
    """
    photographs = load_photographs(data_dir, "train")
    if not 1 <= num_images <= len(photographs.labels):
        refuse("num_images", num_images, f"1 to {len(photographs.labels)}")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        refuse("output", str(output), "a folder that is new or empty")
    check_writable(output, "output")
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(photographs.labels), generator=generator)[:num_images]
    composed, captions = draw(photographs, chosen, generator)
    rows = []
    for number, (image, caption) in enumerate(zip(to_pil(composed), captions, strict=True)):
        name = f"{number:05}.png"
        save_png(image, output / name)
        rows.append(json.dumps({"file_name": name, "text": CAPTIONS[caption]}))
    with replacing(
        output / f"{METADATA}.jsonl"
    ) as temporary:  # last: without it the folder is not valid
        temporary.write_text("\n".join(rows) + "\n")


if __name__ == "__main__":
    from jsonargparse import auto_cli

    try:
        auto_cli(images, as_positional=False)
    except UsageError as error:
        sys.exit(f"error: {error}")
