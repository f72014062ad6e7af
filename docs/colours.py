"""Measure how guidance changes the colours of the embedded teacher, for the answers on training.

`python docs/colours.py` samples the same 100 prompts and seeds at several guidance scales, prints
the images' saturation and contrast, and writes docs/answers/colours.png.
"""

from pathlib import Path

import torch

from sid_lsg.files.sources import resolve
from sid_lsg.images.pixels import grid, save_png
from sid_lsg.teachers.families import load

SCALES = (1.0, 1.5, 3.0, 4.5, 7.5)
COUNT, STEPS = 100, 25
SHOWN = len(SCALES)  # images per scale, so that the grid has one row for each scale


def saturation(images: torch.Tensor) -> float:
    """Return the mean over pixels of (max - min) / max over the channels, as in HSV."""
    pixels = images.clamp(-1, 1).add(1).div(2)
    most, least = pixels.amax(dim=1), pixels.amin(dim=1)
    return float(((most - least) / most.clamp(min=1e-3)).mean())


def clipped(images: torch.Tensor) -> float:
    """Return the share of values outside [-1, 1], which an image cannot hold."""
    return float((images.abs() > 1).float().mean())


if __name__ == "__main__":
    teacher = load("package:demo/fashion")
    prompts = Path(resolve("package:demo/fashion/prompts.txt")).read_text().splitlines()[:COUNT]
    shown = []
    for scale in SCALES:
        images = teacher.sample_reference(prompts, range(COUNT), STEPS, scale)
        print(f"{scale:4}  saturation {saturation(images):.3f}  clipped {clipped(images):.1%}")
        shown.append(images[:SHOWN])
    save_png(grid(torch.cat(shown)), Path(__file__).parent / "answers/colours.png")
