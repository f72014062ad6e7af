"""The configs of large teachers: their headers agree with stored estimates of their options."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from sid_lsg.teachers.families import architecture_of
from tests.helpers.paths import CONFIGS, REPOSITORY

TEACHERS = sorted((CONFIGS / "teacher").glob("*.yaml"))
ESTIMATES: list[dict[str, Any]] = json.loads(
    (REPOSITORY / "results" / "estimates" / "teachers.json").read_text()
)
NUMBERS = {"eight": 8, "64": 64}  # of GPUs, for all weights, in the headers
each_config = pytest.mark.parametrize("path", TEACHERS, ids=lambda path: path.stem)


def header(path: Path) -> str:
    lines = path.read_text().split("\nmodel:")[0].splitlines()
    return " ".join(line.removeprefix("#").strip() for line in lines)


def stored(path: Path, trained: str, gpus: int) -> dict[str, Any]:
    """Return the estimate of a config as it is, on GPUs with 80 GB."""
    resolution = yaml.safe_load(path.read_text())["model"]["resolution"]
    wanted = (path.stem, resolution, trained, "h100", gpus)
    keys = ("config", "resolution", "trained", "gpu", "gpus")
    (found,) = (row for row in ESTIMATES if tuple(row[key] for key in keys) == wanted)
    return found


def cases(path: Path) -> list[tuple[re.Match[str], dict[str, Any]]]:
    """Return what a header says about all weights and about adapters, and the estimates."""
    said = (
        re.search(
            r"all weights on (\w+) H100s with 80 GB: ([\d.]+) GiB on each, (\d+) hours",
            header(path),
        ),
        re.search(r"adapters on (one): ([\d.]+) GiB, (\d+) hours", header(path)),
    )
    assert said[0], header(path)
    assert said[1], header(path)
    counted = stored(path, "all weights", NUMBERS[said[0][1]]), stored(path, "LoRA", 1)
    return [(said[0], counted[0]), (said[1], counted[1])]


@each_config
def test_headers_state_what_estimate_counted(path: Path) -> None:
    for said, counted in cases(path):
        assert said[2] == f"{counted['memory_gib']:.1f}"
        assert said[3] == f"{counted['hours']:.0f}"
        assert counted["memory_gib"] < counted["usable_gib"]


@each_config
def test_the_estimates_are_of_the_configs_options(path: Path) -> None:
    config = yaml.safe_load(path.read_text())
    for _, counted in cases(path):
        assert counted["teacher"] == config["model"]["teacher"]
        assert counted["batch_size"] == config["data"]["batch_size"]
        said = re.search(r"--model.micro_batch_size (\d+)", header(path))
        own = int(said[1]) if said and counted["trained"] == "LoRA" else None
        assert counted["micro_batch_size"] == (own or config["model"]["micro_batch_size"])
        assert counted["iterations"] == config["trainer"]["max_steps"]
        assert counted["precision"] == config["trainer"]["precision"]


@each_config
def test_the_teacher_is_known_and_its_numbers_are_given(path: Path) -> None:
    config = yaml.safe_load(path.read_text())
    model = config["model"]
    assert architecture_of(model["teacher"])
    assert model["loading"]["revision"]
    given = {"resolution", "guidance", "t_init", "num_steps", "step_training", "memory"}
    assert given | {"optimizer_fake", "optimizer_generator", "micro_batch_size"} <= model.keys()
    images = config["trainer"]["max_steps"] * config["data"]["batch_size"]
    said = re.search(r"Images seen: ([\d.]+) M \(([\d,]+) iterations of (\d+)\)", header(path))
    assert said
    assert float(said[1]) == round(images / 1e6, 1)
    assert "Published: " in header(path)
    assert "Never run here with real weights." in header(path)
