"""Print the alignment of reports as rows, for docs/results/law.md.

    sid-lsg evaluate --images runs/student/images --reference runs/references/report \
      --protocol clip --clip package:demo/fashion/clip --num_images 2000 --output runs/alignment/1
    python docs/alignment.py "student,real=runs/alignment/1" ...

prints the rows of results/alignment.csv.
"""

import csv
import json
import sys
from pathlib import Path

HEADER = (
    *("images", "reference", "fid", "feature_shift", "neighbour_ratio"),
    *("power_low_db", "power_middle_db", "power_high_db"),
)


def row(argument: str) -> list[str]:
    """Return the row of IMAGES,REFERENCE=FOLDER."""
    pair, _, folder = argument.partition("=")
    report = json.loads((Path(folder) / "report.json").read_text())
    found = report["alignment"]
    values = [
        next(value for name, value in report["scores"].items() if name.startswith("fid")),
        found["features"]["mean_shift"]["rms"],
        found["neighbours"]["median_ratio"],
        *(found["pixels"]["power_db"][band] for band in ("low", "middle", "high")),
    ]
    return [*pair.split(","), *(f"{value:.6f}" for value in values)]


if __name__ == "__main__":
    out = csv.writer(sys.stdout, lineterminator="\n")
    out.writerow(HEADER)
    out.writerows(map(row, sys.argv[1:]))
