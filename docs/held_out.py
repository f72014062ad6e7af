"""Score images against references that the teacher was not trained on, for docs/results/law.md.

    python -m sid_lsg.demo.images --split t10k --num_images 5000 --output runs/references/choose
    python -m sid_lsg.demo.images --split t10k --num_images 5000 --skip 5000 \
      --output runs/references/report
    (and with --change colours, backgrounds, position and scale, each to its own folder)
    sid-lsg evaluate --config configs/evaluate/demo.yaml --model RUN --output runs/student
    python docs/held_out.py --images runs/student/images ... --references runs/references/*

prints the rows of results/held_out.csv. `--decoded` scores what the teacher's autoencoder makes of
the images.
"""

import argparse
import csv
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from sid_lsg.images.folder import read_image
from sid_lsg.metrics.evaluator import Evaluator
from sid_lsg.metrics.features import CLIPFeatures
from sid_lsg.metrics.protocol import load_protocol
from sid_lsg.metrics.reference import load_reference
from sid_lsg.teachers.families import load

BATCH = 100
SCORES = ("fid", "precision", "recall")

Scored = Callable[[Evaluator, Sequence[Path]], dict[str, float]]


def as_they_are(evaluator: Evaluator, paths: Sequence[Path]) -> dict[str, float]:
    """Score images."""
    return evaluator.of_folder(paths, None, BATCH, "cpu", "images", None).values


def decoded(evaluator: Evaluator, paths: Sequence[Path]) -> dict[str, float]:
    """Score images that the teacher's autoencoder has encoded and decoded."""
    teacher = load("package:demo/fashion")

    def sample(_: Sequence[str], numbers: Sequence[int]) -> torch.Tensor:
        pixels = torch.stack([read_image(paths[number]) for number in numbers])
        return teacher.decode(teacher.encode_images(pixels))

    return evaluator.of_sampler(sample, [""], len(paths), BATCH, "cpu").values


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", nargs="+", type=Path, required=True)
    parser.add_argument("--references", nargs="+", type=Path, required=True)
    parser.add_argument("--decoded", action="store_true")
    arguments = parser.parse_args()
    score: Scored = decoded if arguments.decoded else as_they_are
    clip = CLIPFeatures.from_pretrained("package:demo/fashion/clip")
    protocol = load_protocol("clip", clip, None)
    out = csv.writer(sys.stdout, lineterminator="\n")
    out.writerow(["images", "reference", "count", *SCORES])
    for folder in arguments.references:
        reference = load_reference(str(folder), protocol, "references", BATCH, "cpu", None)
        evaluator = Evaluator(protocol, None, "", reference)
        for images in arguments.images:
            paths = sorted(images.glob("*.png"))
            found = score(evaluator, paths)
            name = images.parent.name if images.name == "images" else images.name
            name += ", decoded" if arguments.decoded else ""
            out.writerow([name, folder.stem, len(paths), *(found[each] for each in SCORES)])
