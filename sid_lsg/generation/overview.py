"""Write the images of a folder to a contact sheet or an archive."""

import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from sid_lsg.files.replacing import replacing
from sid_lsg.generation.image_files import ImageRequest
from sid_lsg.images.pixels import contact_sheet, save_png

_ON_SHEET = 100  # images, at most


def write_sheet(path: Path, requests: Sequence[ImageRequest], images: Sequence[Path]) -> None:
    """Write the first images to a contact sheet, with the seeds of a prompt side by side."""
    shown = requests[:_ON_SHEET]
    per_prompt = sum(request.prompt == requests[0].prompt for request in shown)
    captions = [f"{request.prompt} [{request.seed}]" for request in shown]
    columns = per_prompt if 1 < per_prompt <= 10 else None
    tiles = [Image.open(image) for image in images[: len(shown)]]
    save_png(contact_sheet(tiles, captions, columns), path)


def write_archive(path: Path, requests: Sequence[ImageRequest], images: Sequence[Path]) -> None:
    """Write all images to an .npz file, one at a time, so that memory use is constant."""
    with Image.open(images[0]) as first:
        shape = (len(images), first.height, first.width, 3)
    others = {
        "seeds": np.array([request.seed for request in requests], dtype=np.uint64),
        "prompts": np.array([request.prompt for request in requests]),
    }
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        with archive.open("images.npy", "w", force_zip64=True) as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_2_0(file, header)
            for name in images:
                with Image.open(name) as image:
                    file.write(np.asarray(image).tobytes())
        for key, values in others.items():
            with archive.open(f"{key}.npy", "w") as file:
                np.lib.format.write_array(file, values, allow_pickle=False)
