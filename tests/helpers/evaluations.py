"""Command lines of `evaluate`, the files that they need, and what they write."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sid_lsg.cli import main
from sid_lsg.export.folder import save_pipeline
from sid_lsg.training.module import SiDLSG
from tests.helpers.embedders import make_clip, write_inception

PROMPTS = ["a red cat", "two dogs on a log", "something else"]
NUM_IMAGES = 6


class Files:
    """The files that evaluations need."""

    def __init__(self, folder: Path, small_sd: str) -> None:
        self.folder = folder
        module = SiDLSG(small_sd)
        self.generator = folder / "generator"
        save_pipeline(module.teacher, module.generator, self.generator, module.t_init)
        self.clip = make_clip(folder / "clip", Path(small_sd, "tokenizer"))
        self.prompts = folder / "prompts.txt"
        self.prompts.write_text("\n".join(PROMPTS) + "\n")
        self.real = folder / "real"
        self.real.mkdir()
        noise = np.random.default_rng(0).integers(0, 256, (9, 64, 64, 3), np.uint8)
        for index, pixels in enumerate(noise):
            Image.fromarray(pixels).save(self.real / f"{index}.png")
        self.inception = write_inception(folder / "inception.pt")

    def line(self, *more: Any, model: Any = None, **options: Any) -> list[str]:
        """Return a command line that evaluates a model."""
        chosen = {
            "model": model or self.generator, "prompts": self.prompts, "reference": self.real,
            "protocol": "clip", "clip": self.clip, "num_images": NUM_IMAGES, "batch_size": 4,
            "accelerator": "cpu", "progress": "false",
        } | options  # fmt: skip
        pairs = [(f"--{name}", str(value)) for name, value in chosen.items() if value is not None]
        return ["evaluate", *(part for pair in pairs for part in pair), *map(str, more)]


def report(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "report.json").read_text())


def refused(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    """Run a command that must end with one error message; return the message."""
    with pytest.raises(SystemExit) as end:
        main(list(args))
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert error.count("error: ") == 1
    assert "Traceback" not in error
    return error


def folder_line(files: Files, images: Path, **options: Any) -> list[str]:
    """Return the options for a folder of images."""
    line = files.line(**({"prompts": None} | options))[1:]
    place = line.index("--model")
    return [*line[:place], "--images", str(images), *line[place + 2 :]]
