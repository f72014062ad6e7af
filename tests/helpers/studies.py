"""Load the studies in configs/study."""

from functools import cache
from pathlib import Path
from typing import Any

import yaml

from sid_lsg.commands.fit_options import reader
from sid_lsg.commands.study import _NoOptions, study
from sid_lsg.study.options import PromptFile, Series, Study, Teacher
from sid_lsg.study.plan import Run, plan
from sid_lsg.study.prompts import names

read = reader(study, _NoOptions)


@cache
def shipped(path: Path) -> tuple[Study, list[Run], dict[str, PromptFile]]:
    config: dict[str, Any] = yaml.safe_load(path.read_text())
    files = {k: PromptFile(**f) for k, f in config.get("prompt_files", {}).items()}
    of = Study(
        output=Path("runs/study"),
        base=config["base"],
        options=config["options"],
        series={k: Series(**s) for k, s in config["series"].items()},
        seeds=config["seeds"],
        images=config["images"],
        teacher=Teacher(**config["teacher"]),
        generator_steps=config.get("generator_steps", []),
    )
    return of, plan(of, read, names(files)), files
