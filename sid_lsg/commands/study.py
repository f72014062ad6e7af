"""`study`: run a grid of fits, and compare their scores in tables and plots."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from sid_lsg.files.config_files import CONFIG_OPTIONS, pairs
from sid_lsg.files.replacing import check_writable, remove, remove_leftovers, replacing, writing
from sid_lsg.files.sources import resolve
from sid_lsg.messages.checks import refuse
from sid_lsg.messages.errors import UsageError
from sid_lsg.options.reading import read_yaml
from sid_lsg.study.options import ErrorBars, PromptFile, Series, Study, Teacher

if TYPE_CHECKING:
    from sid_lsg.study.plan import Run
    from sid_lsg.study.results import Row
    from sid_lsg.study.tasks import Task

TABLE = "results.md"


@dataclass
class _NoOptions:
    """No options, since a run of a study has only those of `fit`."""


def study(
    output: str = "runs/study",
    base: list[str] = [],  # noqa: B006 (read only; what --help shows)
    options: dict[str, Any] = {},  # noqa: B006
    series: dict[str, Series] = {},  # noqa: B006
    seeds: list[int] = [0],  # noqa: B006
    images: int = 64_000,
    teacher: Teacher | None = None,
    generator_steps: list[int] = [],  # noqa: B006
    prompt_files: dict[str, PromptFile] = {},  # noqa: B006
    processes: int = 1,
    threads: int | None = None,
    accelerator: str | None = None,
    keep_checkpoints: bool = True,
    error_bars: ErrorBars = "std",
    results: str | list[str] | None = None,
    dry_run: bool = False,
) -> None:
    """Run a grid of fits, one for each point and seed, and compare their scores.

    Writes runs.jsonl (one line per run), evaluations.csv (one row per evaluation), results.md and
    plots to the output folder, and the runs to its runs/. The same command continues after an
    interruption, and skips finished runs.

    Args:
        output: Folder of the study.
        base: Configs of `fit` for all runs.
        options: Options of `fit` for all runs, by dotted names.
        series: The runs: named series of points. A point is a set of options of `fit`.
        seeds: Seeds of each point.
        images: Number of images that each run sees; sets --trainer.max_steps.
        teacher: Also score the teacher, at these settings.
        generator_steps: Also score each run's generator at these numbers of steps.
        prompt_files: Prompt files to derive from others, by name. Options refer to them as
            study:prompts/NAME.txt.
        processes: Number of runs at a time.
        threads: Threads per run; by default an equal share of the cores.
        accelerator: Accelerator of all runs (cpu, gpu); by default that of their configs. It
            changes the numbers only by rounding, so a study can continue on another one.
        keep_checkpoints: Keep the checkpoints of finished runs, in addition to their generators.
        error_bars: Spread over the seeds: standard deviation (std), or standard error of the mean
            (sem).
        results: Run nothing, but make the table and plots from runs.jsonl and evaluations.csv in
            this folder, or in several folders.
        dry_run: Only list the runs.

    Raises:
        UsageError: If an option is invalid, or some runs failed.
    """
    from sid_lsg.commands.fit_options import reader
    from sid_lsg.study.collect import collect
    from sid_lsg.study.execute import alone, execute
    from sid_lsg.study.plan import plan
    from sid_lsg.study.prompts import names, write_prompts
    from sid_lsg.study.results import read_rows, write_results
    from sid_lsg.study.tasks import RUNS, jobs

    root = Path(output).expanduser()
    if results is not None:
        check_writable(root, "output")
        rows = read_rows([results] if isinstance(results, str) else results)
        with writing(root, "output"):
            report(rows, error_bars, root)
        return
    for name, number in (("processes", processes), ("threads", threads)):
        if number is not None and number < 1:
            refuse(name, number, "at least 1")
    asked = Study(
        output=root,
        base=base,
        options=options,
        series={str(k): s if isinstance(s, Series) else Series(**s) for k, s in series.items()},
        seeds=seeds,
        images=images,
        teacher=Teacher(**teacher) if isinstance(teacher, dict) else teacher,
        generator_steps=generator_steps,
        accelerator=accelerator,
    )
    files = {k: f if isinstance(f, PromptFile) else PromptFile(**f)
             for k, f in prompt_files.items()}  # fmt: skip
    runs = plan(asked, reader(study, _NoOptions), names(files))
    if dry_run:
        print(listing(asked, runs))
        return
    check_writable(root, "output")
    with alone(root) as lock:
        todo = jobs(asked, runs)
        for job in todo:
            for task in job:
                task.check()
        with writing(root, "output"):
            remove_leftovers(root)
            write_prompts(files, root)

            def finished(task: "Task") -> None:
                if not keep_checkpoints and task.folder.parent.name == RUNS:
                    remove(task.folder / "checkpoints")
                write_results(collect(asked, runs), root)

            share = threads or (max(1, cores() // processes) if processes > 1 else None)
            failures = execute(todo, processes, share, lock, finished)
            found = collect(asked, runs)
            write_results(found, root)
            report(found.rows(), error_bars, root)
    if failures:
        listed = "\n  ".join(failures)
        raise UsageError(
            f"{len(failures)} of the study's tasks failed; the tables and plots show the others. "
            f"Run the same command to try these again:\n  {listed}"
        )


def report(rows: "list[Row]", error_bars: ErrorBars, root: Path) -> None:
    """Write results.md and the plots."""
    from sid_lsg.study.plots import draw
    from sid_lsg.study.tables import markdown

    text = markdown(rows, error_bars)
    with replacing(root / TABLE) as temporary:
        temporary.write_text(text, encoding="utf-8")
    drawn = draw(rows, error_bars, root)
    print(f"{text}\nTables and plots: {root} ({', '.join(sorted(path.name for path in drawn))})")


def listing(asked: Study, runs: "list[Run]") -> str:
    """List the runs and their cost."""
    from sid_lsg.study.tasks import jobs

    todo = [task for job in jobs(asked, runs) for task in job]
    lines = [f"  {task.title}{' (finished)' if task.finished else ''}" for task in todo]
    evaluations = sum(task.cost for task in todo)
    return (
        f"{len(runs)} fits, {sum(run.images for run in runs):,} images, "
        f"{len(todo) - len(runs)} evaluations of models; "
        f"{evaluations:,.0f} network evaluations:\n" + "\n".join(lines)
    )


def cores() -> int:
    """Return the number of cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def check_series(arguments: Sequence[str]) -> None:
    """Reject `--series NAME`: the option defines series and does not select from a config's.

    Args:
        arguments: The command's arguments, with readable configs.

    Raises:
        UsageError: If a name is given; the message lists the configs' series.
    """
    known: list[object] = []
    for option, value in pairs(arguments):
        if option in CONFIG_OPTIONS:
            content = read_yaml(Path(resolve(value)).read_text(encoding="utf-8"))
            series = content.get("series") if isinstance(content, dict) else None
            known += series if isinstance(series, dict) else ()
        elif option == "--series" and _is_name(value):
            there = f" (the configs define {', '.join(map(str, known))})" if known else ""
            raise UsageError(
                f"--series: {value!r} has no points. The option defines series, as configs/study "
                f"do; it does not select any{there}. To run only some series, remove the others "
                "in a copy of the config."
            )


def _is_name(value: str) -> bool:
    """Return True if a value is a single word; the parser reports invalid YAML."""
    try:
        return isinstance(read_yaml(value), str)
    except yaml.YAMLError:
        return False
