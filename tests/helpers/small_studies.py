"""Small studies of the demo, their plans and tasks."""

from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from sid_lsg.study.options import Series, Study
from sid_lsg.study.plan import Run, plan
from sid_lsg.study.tasks import Task
from tests.helpers.paths import REPOSITORY
from tests.helpers.studies import read

DEMO = str(REPOSITORY / "configs/demo.yaml")
KAPPAS = Series({"1": {"model.guidance.scale": 1}, "1.5": {"model.guidance.scale": 1.5}},
                {"model.guidance.preset": "lsg"})  # fmt: skip
names = st.sampled_from(["a", "a.b", "a.b.c", "b", "ab"])  # of options and their sections


def asked(output: Path, series: dict[str, Series], **changes: Any) -> Study:
    """Make a small study, by default with 128 images."""
    given_: dict[str, Any] = {"base": [DEMO], "options": {}, "seeds": [0], "images": 128}
    return Study(output=output, series=series, **(given_ | changes))


def planned(of: Study, prompt_files: tuple[str, ...] = ()) -> list[Run]:
    return plan(of, read, {*prompt_files})


def task(folder: Path, options: dict[str, Any], command: tuple[str, ...] = ("fit",)) -> Task:
    return Task("a run", folder, folder / "summary.json", command, options, 4.0, 2)
