"""Score EMAs of several widths along runs of the study `law`, for docs/results/law.md.

`python docs/ema_widths.py RUN ...` takes run directories with `ema_snapshots/` and prints the rows
of results/ema_widths.csv. The reference is the demo's; `--reference FOLDER` takes another one, for
example half of the test images (`python -m sid_lsg.demo.images --split t10k --num_images 5000`).
"""

import argparse
import csv
import sys
from pathlib import Path

from sid_lsg.checkpoints.opening import require_checkpoint
from sid_lsg.export.snapshots import post_hoc_ema
from sid_lsg.files.sources import resolve
from sid_lsg.generation.trained import load_trained
from sid_lsg.messages.errors import UsageError
from sid_lsg.metrics.evaluator import Evaluator
from sid_lsg.metrics.features import CLIPFeatures
from sid_lsg.metrics.protocol import load_protocol
from sid_lsg.metrics.reference import load_reference

WIDTHS = (0.05, 0.1, 0.15, 0.2)
COUNT, BATCH = 2000, 100
COLUMNS = ("run", "images_seen", "width", "fid_clip_2k", "clip_score_clip_2k")


def scored(run: Path, every: int, evaluator: Evaluator) -> None:
    """Print a row for each width that the snapshots allow, every so many images of a run."""
    found = load_trained(require_checkpoint(str(run)))
    teacher, prompts = found.teacher, Path(resolve("package:demo/fashion/prompts.txt"))
    texts = prompts.read_text().splitlines()

    def sample(prompts, seeds):  # type: ignore[no-untyped-def]
        network, t_init = teacher.network, found.t_init
        return teacher.decode(
            teacher.generate(network, prompts, seeds, t_init, found.num_steps, found.noise)
        )

    saved = {int(path.stem[7:]) for path in (run / "ema_snapshots").glob("images-*.safetensors")}
    for images in sorted(count for count in saved if count % every == 0):
        for width in WIDTHS:
            try:
                average = post_hoc_ema(run, images, width)
            except UsageError:  # there are too few snapshots so far
                continue
            teacher.network.load_state_dict(average, strict=False)
            values = evaluator.of_sampler(sample, texts, COUNT, BATCH, "cpu").values
            row = run.name, images, width, values["fid"], values["clip_score"]
            csv.writer(sys.stdout, lineterminator="\n").writerow(row)
            sys.stdout.flush()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--every", type=int, default=51_200)
    parser.add_argument("--reference", default="package:demo/fashion/reference.safetensors")
    arguments = parser.parse_args()
    clip = CLIPFeatures.from_pretrained("package:demo/fashion/clip")
    protocol = load_protocol("clip", clip, None)
    reference = load_reference(arguments.reference, protocol, "reference", BATCH, "cpu", None)
    print(",".join(COLUMNS))
    for run in arguments.runs:
        scored(run, arguments.every, Evaluator(protocol, clip, "", reference))
