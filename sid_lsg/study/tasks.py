"""The commands of a study's runs, each with the file that marks it as finished."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sid_lsg.files.replacing import replacing
from sid_lsg.messages.errors import UsageError
from sid_lsg.messages.words import steps as in_words
from sid_lsg.method.guidance import sampling_evaluations
from sid_lsg.options.renamed import current_name
from sid_lsg.study.options import Options, Study, arguments, flatten
from sid_lsg.study.plan import Run, slugify
from sid_lsg.study.prompts import located

RUNS, EVALUATIONS = "runs", "evaluations"
_SHOWN = 6  # changed options that a message lists, at most


@dataclass(frozen=True)
class Task:
    """A command.

    Attributes:
        title: Its name in messages.
        folder: The folder that it writes.
        result: The file in the folder that marks it as finished.
        command: Its arguments after `python -m sid_lsg.cli`.
        options: The options that its results depend on.
        settings: The same with all defaults: an earlier record may state some of these, since the
            config that it was made with did.
        cost: Approximate number of network evaluations.
        iterations: Its last step in metrics.csv; 0 if it does not write one.
    """

    title: str
    folder: Path
    result: Path
    command: tuple[str, ...]
    options: Options
    cost: float
    iterations: int = 0
    settings: Options = field(default_factory=dict)

    @property
    def finished(self) -> bool:
        """Return whether the task is finished."""
        return self.result.is_file()

    @property
    def beside(self) -> Path:
        """Return the file beside the folder that records the options."""
        return self.folder.with_name(f"{self.folder.name}.json")

    @property
    def log(self) -> Path:
        """Return the file beside the folder that receives the command's output."""
        return self.folder.with_name(f"{self.folder.name}.log")

    def continued(self) -> "Task":
        """Return the task with a command that resumes an interrupted fit."""
        resumes = self.command[0] == "fit" and self.folder.exists()
        return replace(self, command=(*self.command, "--ckpt_path=last")) if resumes else self

    def record(self) -> None:
        """Record the options beside the folder."""
        with replacing(self.beside) as temporary:
            text = json.dumps(self.options, indent=2, ensure_ascii=False)
            temporary.write_text(f"{text}\n", encoding="utf-8")

    def check(self) -> None:
        """Check that the recorded options are the same.

        Raises:
            UsageError: If they differ or are missing; the message lists the differences.
        """
        if not self.folder.exists():
            return
        try:
            before = json.loads(self.beside.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UsageError(
                f"--output: {str(self.folder)!r} exists, but the file {self.beside.name!r} beside "
                "it with its options does not. Give another --output, or delete that folder."
            ) from error
        now = json.loads(json.dumps(self.options))
        known = json.loads(json.dumps(self.settings, default=str))
        before = {_current(name, value): value for name, value in before.items()}
        before = {
            name: value
            for name, value in before.items()
            if name in now or name not in known or known[name] != value
        }
        if changes := differences(before, now):
            if len(changes) > _SHOWN:
                changes[_SHOWN:] = [f"and {len(changes) - _SHOWN} more"]
            state = "finished" if self.finished else "interrupted"
            raise UsageError(
                f"--output: {state} {str(self.folder)!r} was made with other options: "
                f"{'; '.join(changes)}. Restore them, give another --output, or delete that folder "
                "to make it again."
            )


def _current(name: str, value: Any) -> str:
    """Return the current name of a recorded option, which may begin with `fit: `."""
    start, space, option = name.rpartition(" ")
    return start + space + current_name(option, value)


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """List the options that differ, with both values."""
    nothing = "not given"
    return [
        f"{name} was {before.get(name, nothing)!r}, is {now.get(name, nothing)!r}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name, nothing) != now.get(name, nothing)
    ]


def jobs(study: Study, runs: Iterable[Run]) -> list[list[Task]]:
    """List a study's jobs: independent lists of tasks that run one after the other.

    All points with the first seed come first, so an interrupted study already covers all points.
    """
    runs = sorted(runs, key=lambda run: study.seeds.index(run.seed))
    return [*teacher_jobs(study, runs), *([fit(study, r), *at_steps(study, r)] for r in runs)]


def fit(study: Study, run: Run) -> Task:
    """Return the task of a run."""
    folder = study.output / RUNS / run.name
    options = {name: located(value, study.output) for name, value in run.options.items()}
    options |= {"trainer.default_root_dir": str(folder), "progress.refresh_rate": 0}
    if study.accelerator:
        options["trainer.accelerator"] = study.accelerator
    command = ("fit", *arguments(study.base, options))
    result = folder / "summary.json"
    return Task(
        run.title, folder, result, command, run.explicit, run.evaluations, run.iterations,
        settings=flatten(run.config.as_dict()),
    )  # fmt: skip


def teacher_jobs(study: Study, runs: Iterable[Run]) -> list[list[Task]]:
    """Return the tasks that score the teacher, once per setting, prompts and metrics."""
    found: dict[str, list[Task]] = {}
    for run in runs if study.teacher else ():
        assert study.teacher
        for steps in study.teacher.num_steps:
            for guidance in study.teacher.guidance:
                scored = _scored(run) | {
                    "model": run.config.model.teacher,
                    "resolution": run.config.model.resolution,
                    "sampler": "ddim",
                    "num_steps": steps,
                    "guidance": guidance,
                }
                key = json.dumps(scored)
                if key not in found:
                    name = slugify(f"teacher-{Path(run.scored_prompts).stem}")
                    same = {task.folder.name for (task,) in found.values()}
                    name = f"{name}-steps{steps}-guidance{guidance:g}"
                    while name in same:  # prompt files of the same name in several folders
                        name += "x"
                    title = f"teacher, {in_words(steps)}, guidance {guidance:g}"
                    cost = scored["num_images"] * sampling_evaluations(steps, guidance)
                    found[key] = [_evaluation(study, name, title, scored, cost)]
    return [*found.values()]


def at_steps(study: Study, run: Run) -> list[Task]:
    """Return the tasks that score a run's generator with other numbers of steps."""
    folder = study.output / RUNS / run.name
    made = []
    for steps in study.generator_steps:
        if steps != run.config.model.num_steps:
            scored = _scored(run) | {
                "model": str(folder / "generator"),
                "sampler": "generator",
                "num_steps": steps,
            }
            title, name = f"{run.title}, {in_words(steps)}", f"{run.name}-steps{steps}"
            task = _evaluation(study, name, title, scored, scored["num_images"] * steps)
            # Record how the generator was trained instead of its path, which may change.
            trained = {f"fit: {name}": value for name, value in run.explicit.items()}
            options = task.options | {"model": run.name} | trained
            known = flatten(run.config.as_dict(), "fit: ")
            made.append(replace(task, options=options, settings=known))
    return made


def _scored(run: Run) -> dict[str, Any]:
    """Return the options of `evaluate` for scoring as the run does."""
    data, metrics = run.config.data, run.config.metrics
    same = ("reference", "protocol", "inception", "clip", "clip_prefix", "num_images", "batch_size")
    return {
        "prompts": run.scored_prompts
        if isinstance(data.heldout or data.prompts, str)
        else run.scored_prompts.split(", "),
        "column": data.column,
        **{name: metrics[name] for name in same},
        "accelerator": run.config.trainer.accelerator,
    }


def _evaluation(study: Study, name: str, title: str, scored: Options, cost: float) -> Task:
    folder = study.output / EVALUATIONS / name
    options = {option: located(value, study.output) for option, value in scored.items()}
    options |= {"output": str(folder), "name": title, "progress": False}
    if study.accelerator:
        options["accelerator"] = study.accelerator
    command = ("evaluate", *arguments((), options))
    return Task(title, folder, folder / "report.json", command, scored, cost)
