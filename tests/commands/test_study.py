"""The study command: its plan, its commands, resuming and errors."""

import csv
import json
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from sid_lsg.cli import main
from sid_lsg.commands.study import check_series
from sid_lsg.messages.errors import Interrupted, UsageError
from sid_lsg.method.guidance import Kappas
from sid_lsg.study import execute as execution
from sid_lsg.study.execute import alone, done_share, duration, execute
from sid_lsg.study.options import (
    PromptFile,
    Series,
    Study,
    Teacher,
    arguments,
    explicit,
    flatten,
    merge,
)
from sid_lsg.study.plan import Run, evaluations_per_image, plan, slugify
from sid_lsg.study.tasks import Task, differences, jobs
from tests.helpers.interpreter import interpreter
from tests.helpers.paths import REPOSITORY
from tests.helpers.studies import read

DEMO = str(REPOSITORY / "configs/demo.yaml")


def asked(output: Path, series: dict[str, Series], **changes: Any) -> Study:
    """Make a small study, by default with 128 images."""
    given_: dict[str, Any] = {"base": [DEMO], "options": {}, "seeds": [0], "images": 128}
    return Study(output=output, series=series, **(given_ | changes))


def planned(of: Study, prompt_files: tuple[str, ...] = ()) -> list[Run]:
    return plan(of, read, {*prompt_files})


KAPPAS = Series({"1": {"model.guidance.scale": 1}, "1.5": {"model.guidance.scale": 1.5}},
                {"model.guidance.preset": "lsg"})  # fmt: skip


def test_a_plan_has_a_run_for_each_point_and_seed(tmp_path: Path) -> None:
    runs = planned(asked(tmp_path, {"LSG": KAPPAS}, seeds=[3, 4]))
    assert [run.name for run in runs] == [
        "lsg-1-seed3", "lsg-1-seed4", "lsg-1.5-seed3", "lsg-1.5-seed4",
    ]  # fmt: skip
    assert [run.kappas for run in runs] == [(1,) * 4] * 2 + [(1.5,) * 4] * 2
    assert all((run.images, run.iterations) == (128, 2) for run in runs)
    assert runs[1].options["seed_everything"] == 4
    assert runs[0].explicit["model.optimizer_fake.init_args.lr"] == 5e-5  # from the base config
    assert runs[0].scored_prompts == "package:demo/fashion/prompts.txt"


def test_scores_at_other_steps_depend_on_the_training_options(tmp_path: Path) -> None:
    """A run repeated with other options does not keep the scores of the old generator."""

    def evaluation(alpha: float) -> Task:
        series = {"a": Series({"x": {"model.alpha": alpha}})}
        of = asked(tmp_path, series, generator_steps=[1, 2])
        ((_, task),) = jobs(of, planned(of))
        return task

    evaluation(1).folder.mkdir(parents=True)
    evaluation(1).record()
    evaluation(1).check()
    with pytest.raises(UsageError, match=r"fit: model.alpha was 1, is 2"):
        evaluation(2).check()


def test_points_with_equal_options_share_a_run(tmp_path: Path) -> None:
    series = {
        "alpha": Series({"1": {"model.alpha": 1.0}, "2": {"model.alpha": 2.0}}),
        "batch": Series({"64": {"data.batch_size": 64}, "32": {"data.batch_size": 32}}),
    }
    runs = planned(asked(tmp_path, series))
    assert [run.labels for run in runs] == [
        (("alpha", "1"), ("batch", "64")), (("alpha", "2"),), (("batch", "32"),),
    ]  # fmt: skip
    assert [run.iterations for run in runs] == [2, 2, 4]


@pytest.mark.parametrize(
    ("series", "changes", "named"),
    [
        ({}, {}, ["--series is missing"]),
        ({"a": Series({})}, {}, ["--series", "'a' has no points"]),
        ({"a": KAPPAS}, {"base": ["no.yaml"]}, ["--base", "no.yaml"]),
        ({"a": KAPPAS}, {"seeds": [1, 1]}, ["--seeds", "differ"]),
        ({"a": KAPPAS}, {"images": 100}, ["--images", "100", "64"]),
        ({"a": KAPPAS}, {"images": 0}, ["--images", "at least 1"]),
        ({"a": KAPPAS}, {"generator_steps": [0]}, ["generator_steps", "at least 1"]),
        ({"a": KAPPAS}, {"teacher": Teacher(guidance=[1, 0.5])}, ["--teacher.guidance", "0.5"]),
        ({"a": Series({"x": {"trainer.max_steps": 3}})}, {}, ["trainer.max_steps", "--images"]),
        ({"a": Series({"x": {"seed_everything": 3}})}, {}, ["seed_everything", "--seeds"]),
        ({"a": Series({"x": {"trainer": {}}})}, {}, ["sets trainer", "--images"]),
        ({"a": Series({"x": {"metrics.clip": None}})}, {}, ["metrics.clip", "--options"]),
        (
            {"a": Series({"x": {}, "y": {"metrics.num_images": 9}})},
            {},
            ["'y'", "9 images", "are not comparable"],
        ),
        ({"a": Series({"x": {}, "X": {"model.alpha": 2}})}, {}, ["share the folder", "a-x"]),
        (
            {"a": Series({"x": {"data.prompts": "study:prompts/none.txt"}})},
            {},
            ["study:prompts/none.txt", "--prompt_files"],
        ),
        (
            {"a": Series({"x": {"data.num_heldout": 5}})},
            {"teacher": Teacher()},
            ["data.num_heldout is 5", "data.heldout"],
        ),
        (
            {"a": Series({"x": {"data.num_heldout": 5}})},
            {"generator_steps": [1, 2]},
            ["--generator_steps", "data.num_heldout is 5", "data.heldout"],
        ),
    ],
)
@pytest.mark.slow
def test_an_invalid_plan_is_rejected(
    tmp_path: Path, series: dict[str, Series], changes: dict[str, Any], named: list[str]
) -> None:
    with pytest.raises(UsageError) as error:
        planned(asked(tmp_path, series, **changes))
    assert all(part in str(error.value) for part in named), str(error.value)


def test_a_wrong_option_is_rejected_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        planned(asked(tmp_path, {"a": Series({"x": {"model.alpah": 1}})}))
    assert end.value.code == 2
    assert "alpah" in capsys.readouterr().err


def test_evaluations_per_image_follow_the_method() -> None:
    """18 with guidance; the docstring of `evaluations_per_image` derives the others."""
    assert evaluations_per_image(Kappas(1.5, 1.5, 1.5, 1.5)) == 18
    assert evaluations_per_image(Kappas(1, 1, 1, 1)) == 11
    assert evaluations_per_image(Kappas(1, 1, 1, 2)) == 13
    assert evaluations_per_image(Kappas(1, 1, 1, 1), real_data=True) == 13
    assert evaluations_per_image(Kappas(1, 1, 2, 2), 4) == 4 + 3 + 12 + 4 + 4


def test_the_accelerator_is_not_part_of_the_options(tmp_path: Path) -> None:
    plain = asked(tmp_path, {"LSG": KAPPAS}, teacher=Teacher(), generator_steps=[2])
    on_gpu = replace(plain, accelerator="gpu")
    for here, there in zip(jobs(plain, planned(plain)), jobs(on_gpu, planned(on_gpu)), strict=True):
        for cpu, gpu in zip(here, there, strict=True):
            option = "trainer.accelerator" if cpu.command[0] == "fit" else "accelerator"
            assert f"--{option}=gpu" in gpu.command
            assert cpu.options == gpu.options


def test_the_teacher_is_scored_once_per_prompt_set(tmp_path: Path) -> None:
    own = Series({"x": {"data.heldout": "study:prompts/few.txt"}})
    made = asked(tmp_path, {"LSG": KAPPAS, "few": own}, seeds=[0, 1],
                 teacher=Teacher([1, 25], [1.5]), generator_steps=[1, 4])  # fmt: skip
    todo = jobs(made, planned(made, ("study:prompts/few.txt",)))
    teachers, fits = todo[:4], todo[4:]
    assert all(len(job) == 1 for job in teachers)
    assert {job[0].folder.name for job in teachers} == {
        f"teacher-{prompts}-steps{steps}-guidance1.5"
        for prompts in ("prompts", "few")
        for steps in (1, 25)
    }
    assert f"--prompts={tmp_path / 'prompts/few.txt'}" in teachers[2][0].command
    assert teachers[2][0].options["prompts"] == "study:prompts/few.txt"  # without the folder
    assert [len(job) for job in fits] == [2] * 6  # each also scores its generator in 4 steps
    fit, four = fits[0]
    assert fit.command[:2] == ("fit", f"--config={DEMO}")
    assert f"--trainer.default_root_dir={tmp_path / 'runs/lsg-1-seed0'}" in fit.command
    assert f"--model={tmp_path / 'runs/lsg-1-seed0/generator'}" in four.command
    assert {"--sampler=generator", "--num_steps=4"} <= {*four.command}


names = st.sampled_from(["a", "a.b", "a.b.c", "b", "ab"])


@given(st.lists(st.dictionaries(names, st.integers(), max_size=3), max_size=4))
def test_merging_options_works_like_a_command_line(parts: list[dict[str, int]]) -> None:
    """The last value of a name wins, unless its whole section is set later."""
    given_ = [item for part in parts for item in part.items()]
    last = {name: place for place, (name, _) in enumerate(given_)}

    def replaced(name: str) -> bool:
        sections = [name[:i] for i, letter in enumerate(name) if letter == "."]
        return any(last.get(section, -1) > last[name] for section in sections)

    expected = {name: given_[last[name]][1] for name in last if not replaced(name)}
    assert merge(*parts) == expected


trees = st.recursive(
    st.integers() | st.lists(st.integers(), max_size=2) | st.none(),
    lambda inner: st.dictionaries(st.sampled_from("abc"), inner, min_size=1, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from("abc"), trees, max_size=3))
def test_flat_options_contain_the_whole_tree(tree: dict[str, Any]) -> None:
    built: dict[str, Any] = {}
    for name, value in flatten(tree).items():
        *sections, last = name.split(".")
        place = built
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = value
    assert built == tree


def test_explicit_options_merge_configs_and_study(tmp_path: Path) -> None:
    config = tmp_path / "a.yaml"
    config.write_text("model: {guidance: {preset: lsg, scale: 2}, alpha: 1.0}\n")
    said = explicit([str(config)], {"model.guidance": {"preset": "none"}, "model.tmin": 3})
    assert said == {"model.guidance.preset": "none", "model.alpha": 1.0, "model.tmin": 3}
    config.write_text("just text")
    with pytest.raises(UsageError, match="--base: .*a.yaml' holds no options"):
        explicit([str(config)], {})
    config.write_text("a: [")
    with pytest.raises(UsageError, match="--base: cannot read .*a.yaml' as YAML"):
        explicit([str(config)], {})


def test_arguments_are_parsed_back_to_the_options(tmp_path: Path) -> None:
    options = {
        "model.guidance": {"preset": "lsg", "scale": None, "eval_fake": [1.5, 1]},
        "model.optimizer_fake.init_args.lr": 1e-05,
        "data.prompts": ["a.txt", "b, c.txt"],
        "metrics.clip_prefix": "A photo, of ",
        "model.prompt_dropout": 0,
    }
    config = read(arguments([DEMO], options))
    assert config.model.guidance.as_dict() == {
        "preset": "lsg", "scale": None, "train_fake": None, "eval_fake": [1.5, 1],
        "eval_real": None, "true_cfg": True, "embedded": None,
    }  # fmt: skip
    assert config.model.optimizer_fake.init_args.lr == 1e-05
    assert config.data.prompts == ["a.txt", "b, c.txt"]
    assert config.metrics.clip_prefix == "A photo, of "


@given(st.lists(st.text(max_size=12), min_size=1, max_size=3))
@pytest.mark.slow
def test_labels_become_file_names(parts: list[str]) -> None:
    name = slugify(*parts)
    assert name
    assert "/" not in name
    assert not name.startswith(".")
    assert name == slugify(name)


def task(folder: Path, options: dict[str, Any], command: tuple[str, ...] = ("fit",)) -> Task:
    return Task("a run", folder, folder / "summary.json", command, options, 4.0, 2)


@pytest.mark.parametrize("state", ["finished", "interrupted"])
def test_changed_options_are_rejected(tmp_path: Path, state: str) -> None:
    before = task(tmp_path / "run", {"model.alpha": 1.0, "data.batch_size": 4})
    before.check()  # no folder yet
    before.folder.mkdir()
    with pytest.raises(UsageError, match="--output: .*run.json"):
        before.check()
    before.record()
    if state == "finished":
        before.result.write_text("{}")
    before.check()
    with pytest.raises(UsageError) as error:
        replace(before, options={"model.alpha": 0.5, "model.tmin": 2}).check()
    message = str(error.value)
    assert f"{state} {str(tmp_path / 'run')!r}" in message
    assert "model.alpha was 1.0, is 0.5" in message
    assert "model.tmin was 'not given', is 2" in message
    assert "data.batch_size was 4, is 'not given'" in message
    assert "delete that folder" in message


def test_a_recorded_option_may_have_become_the_default(tmp_path: Path) -> None:
    """A base config that no longer states a default does not make runs others."""
    of = asked(tmp_path, {"LSG": KAPPAS}, generator_steps=[2])
    name = "model.optimizer_fake.init_args.betas"
    for one, prefix in zip(jobs(of, planned(of))[0], ("", "fit: "), strict=True):
        assert f"{prefix}{name}" not in one.options
        one.folder.mkdir(parents=True)
        replace(one, options=one.options | {f"{prefix}{name}": [0.0, 0.999]}).record()
        one.check()
        replace(one, options=one.options | {f"{prefix}{name}": [0.9, 0.999]}).record()
        with pytest.raises(UsageError, match=r"betas was \[0.9, 0.999\], is 'not given'"):
            one.check()


options_of_tasks = st.dictionaries(names, st.integers() | st.none() | st.text(max_size=3))


@given(options_of_tasks, options_of_tasks)
def test_differences_are_empty_only_for_equal_options(a: Any, b: Any) -> None:
    assert (differences(a, b) == []) == (a == b)
    assert len(differences(a, b)) == len(differences(b, a))


def test_an_interrupted_fit_continues(tmp_path: Path) -> None:
    run = task(tmp_path / "run", {})
    assert run.continued().command == ("fit",)
    run.folder.mkdir()
    assert run.continued().command == ("fit", "--ckpt_path=last")
    other = task(tmp_path / "run", {}, ("evaluate",))
    assert other.continued().command == ("evaluate",)  # it resumes without an option


def test_done_share_and_duration(tmp_path: Path) -> None:
    run = replace(task(tmp_path / "run", {}), iterations=200)
    assert done_share(run) == 0
    run.folder.mkdir()
    (run.folder / "metrics.csv").write_text("loss,step\n1.5,10\n1.4,50\n")
    assert done_share(run) == 0.25
    (run.folder / "metrics.csv").write_text("loss,step\n1.5,10\n1.4,")
    assert done_share(run) == 0
    assert [duration(s) for s in (-1, 8, 90, 3540, 3600, 7265)] == [
        "0 s", "8 s", "2 min", "59 min", "1 h 00 min", "2 h 01 min",
    ]  # fmt: skip


def script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str) -> None:
    """Make tasks run a small script instead of this project."""
    path = tmp_path / "python.sh"
    path.write_text(f"#!/bin/bash\nshift 2\n{text}\n")
    path.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(path))
    monkeypatch.setattr(execution, "_POLL_S", 0.01)


def at(folder: Path, *command: str) -> Task:
    return task(folder, {}, ("fit", str(folder), *command))


WRITES = 'mkdir -p $2; echo "$*" >> $2/said; echo {} > $2/summary.json'


def test_tasks_run_in_order_and_only_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script(monkeypatch, tmp_path, f'{WRITES}; echo "$OMP_NUM_THREADS" > $2/threads')
    todo = [[at(tmp_path / "a"), at(tmp_path / "b")], [at(tmp_path / "c")]]
    done: list[str] = []
    with alone(tmp_path) as lock:
        failed = execute(todo, 2, 3, lock, lambda t: done.append(t.folder.name))
        assert failed == []
        assert sorted(done) == ["a", "b", "c"]
        assert done.index("a") < done.index("b")
        assert (tmp_path / "c/threads").read_text() == "3\n"
        assert json.loads((tmp_path / "a.json").read_text()) == {}
        assert "[1/3] a run" in capsys.readouterr().out
        assert execute(todo, 2, 3, lock, lambda t: done.append("again")) == []
    assert "again" not in done
    assert (tmp_path / "a/said").read_text().count("\n") == 1


@pytest.mark.parametrize(
    ("visible", "found", "processes", "used"),
    [
        (None, 2, 2, {"0", "1"}),
        (None, 0, 2, {"unset"}),
        ("3,5", 8, 2, {"3", "5"}),
        ("MIG-aa,MIG-bb", 1, 2, {"MIG-aa", "MIG-bb"}),
        ("GPU-cc", 1, 2, {"GPU-cc"}),
        ("4,-1,6", 2, 2, {"4"}),
        ("", 0, 2, {""}),
        ("3,5", 2, 1, {"3,5"}),  # one run at a time may use all
    ],
)
def test_runs_at_a_time_use_different_devices(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    visible: str | None,
    found: int,
    processes: int,
    used: set[str],
) -> None:
    sees = 'echo "${CUDA_VISIBLE_DEVICES-unset}" > $2/device; sleep 0.1'
    script(monkeypatch, tmp_path, f"{WRITES}; {sees}")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: found)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    whole = replace(at(tmp_path / "whole"), settings={"trainer.devices": 2})
    todo = [[at(tmp_path / name)] for name in "abcd"]
    with alone(tmp_path) as lock:
        assert execute(todo, processes, None, lock, lambda _: None) == []
        assert execute([[whole]], 2, None, lock, lambda _: None) == []
    assert {(tmp_path / name / "device").read_text().strip() for name in "abcd"} == used
    assert (tmp_path / "whole/device").read_text().strip() == (
        visible or ("unset" if visible is None else "")
    )


def test_failures_are_reported_and_other_tasks_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = 'case $2 in */bad) echo "error: no luck"; exit 3;; */idle) exit 0;; esac'
    script(monkeypatch, tmp_path, f"{cases}; {WRITES}")
    todo = [[at(tmp_path / "bad"), at(tmp_path / "after")], [at(tmp_path / "idle")],
            [at(tmp_path / "good")]]  # fmt: skip
    with alone(tmp_path) as lock:
        bad, idle = execute(todo, 1, None, lock, lambda t: None)
    assert "status 3" in bad
    assert "error: no luck" in bad
    assert str(tmp_path / "bad.log") in bad
    assert "status 0" in idle
    assert "it printed nothing" in idle
    assert not (tmp_path / "after").exists()
    assert (tmp_path / "good/summary.json").exists()


def test_an_interruption_ends_running_tasks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tasks receive SIGTERM and may finish; no process continues afterwards."""
    script(monkeypatch, tmp_path, 'mkdir -p $2; trap "echo saved > $2/saved; exit 143" TERM; '
           "touch $2/begun; while true; do sleep 0.05; done")  # fmt: skip
    todo = [[at(tmp_path / "a")], [at(tmp_path / "b")]]

    def look(task: Task) -> float:
        if all((tmp_path / name / "begun").exists() for name in "ab"):
            raise Interrupted("Ctrl-C", 130)
        return 0.0

    monkeypatch.setattr(execution, "_PROGRESS_S", 0.01)
    monkeypatch.setattr(execution, "done_share", look)
    with alone(tmp_path) as lock, pytest.raises(Interrupted):
        execute(todo, 2, None, lock, lambda t: None)
    assert all((tmp_path / name / "saved").exists() for name in "ab")
    with alone(tmp_path):  # no process holds the lock any more
        pass


def test_a_task_that_ignores_sigterm_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = "touch $2/begun; while true; do sleep 0.05; done"
    script(monkeypatch, tmp_path, f'mkdir -p $2; trap "" TERM; {loop}')

    def look(task: Task) -> float:
        if (tmp_path / "a/begun").exists():
            raise Interrupted("Ctrl-C", 130)
        return 0.0

    monkeypatch.setattr(execution, "_PROGRESS_S", 0.01)
    monkeypatch.setattr(execution, "_END_S", 0.3)
    monkeypatch.setattr(execution, "done_share", look)
    with alone(tmp_path) as lock, pytest.raises(Interrupted):
        execute([[at(tmp_path / "a")]], 1, None, lock, lambda t: None)
    for _ in range(100):  # child processes of the killed task end a moment later
        with suppress(UsageError), alone(tmp_path):
            break
        time.sleep(0.1)
    else:
        pytest.fail("the folder is still held")


def test_two_studies_cannot_share_a_folder(tmp_path: Path) -> None:
    """A study also excludes processes that a killed study left running."""
    with alone(tmp_path) as lock:
        with pytest.raises(UsageError, match="--output: .* in use"), alone(tmp_path):
            pass
        left = subprocess.Popen(["sleep", "30"], pass_fds=[lock])
    with pytest.raises(UsageError, match="--output: .* in use"), alone(tmp_path):
        pass
    left.kill()
    left.wait()
    with alone(tmp_path):
        pass


@pytest.mark.slow
def test_a_small_study_end_to_end(
    tmp_path: Path, small_sd: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Run two short fits and the teacher, repeat the study, change it, and plot only its rows."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(sys, "executable", interpreter())
    config = {
        "base": [DEMO],
        "options": {
            "model.teacher": small_sd, "model.resolution": 64, "data.batch_size": 2,
            "data.num_workers": 0, "metrics.num_images": 6, "metrics.batch_size": 6,
            "metrics.teacher_steps": 1, "metrics.every_n_images": 2, "metrics.num_pictured": 1,
            "image_grid.every_n_steps": 0, "health.every_n_images": 0,
            "data.prompts": "study:prompts/few.txt",
        },
        "prompt_files": {"few": {"source": "package:demo/fashion/prompts.txt", "share": 0.05}},
        "images": 4,
        "series": {"none": {"points": {"all 1": {"model.guidance.preset": "none"}}}},
        "seeds": [0, 1],
        "teacher": {"num_steps": [2], "guidance": [1]},
        "keep_checkpoints": False,
    }  # fmt: skip
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(config))
    command = ["study", "--config", str(tmp_path / "study.yaml"), "--output", str(tmp_path / "out")]
    begun = time.monotonic()
    main([*command, "--processes", "3"])
    out = tmp_path / "out"
    assert "| none | all 1 | 1 | 4 | 2 |" in (out / "results.md").read_text()
    with (out / "evaluations.csv").open() as file:
        rows = [*csv.DictReader(file)]
    found = [(r["model"], r["images_seen"], r["final"]) for r in rows]
    assert found == [
        ("teacher", "", "1"),
        *((f"none-all-1-seed{s}", str(n), str(int(n == 4))) for s in (0, 1) for n in (2, 4)),
    ]
    runs = [json.loads(line) for line in (out / "runs.jsonl").read_text().splitlines()]
    assert [(r["points"], r["seed"], r["images"]) for r in runs] == [
        ([["none", "all 1"]], seed, 4) for seed in (0, 1)
    ]
    assert all(float(row["fid_clip_6"]) > 0 for row in rows)
    for seed in (0, 1):
        run = out / f"runs/none-all-1-seed{seed}"
        summary = json.loads((run / "summary.json").read_text())
        last = rows[2 + 2 * seed]
        assert float(last["fid_clip_6"]) == summary["fid_clip_6"]
        assert float(last["clip_score_clip_6"]) == summary["clip_score_clip_6"]
        assert yaml.safe_load((run / "config.yaml").read_text())["seed_everything"] == seed
        assert (run / "generator/model_index.json").is_file()
        assert not (run / "checkpoints").exists()
    assert (out / "fid_images.png").is_file()
    assert not [*out.rglob("*.tmp")]
    took = time.monotonic() - begun

    capsys.readouterr()
    begun = time.monotonic()
    main(command)  # everything is finished
    assert time.monotonic() - begun < took
    assert "[1/" not in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([*command, "--images", "6"])
    assert "trainer.max_steps was 2, is 3" in capsys.readouterr().err

    monkeypatch.setenv("HOME", str(tmp_path))
    main(["study", "--results", str(out), "--output", "~/docs"])
    for name in ("results.md", "scores.png", "fid_images.png"):
        assert (tmp_path / "docs" / name).read_bytes() == (out / name).read_bytes()
    assert not (tmp_path / "docs/runs").exists()


def test_a_dry_run_only_lists_the_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = str(REPOSITORY / "configs/study/steps.yaml")
    main(["study", "--config", config, "--base", f"[{DEMO}]", "--output", str(tmp_path / "none"),
          "--dry_run", "true"])  # fmt: skip
    said = capsys.readouterr().out
    assert "9 fits, 115,200 images" in said
    assert "trained in, 4 steps, seed 2, 1 step" in said
    assert not (tmp_path / "none").exists()


def test_a_series_name_as_series_option_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    config = str(REPOSITORY / "configs/study/steps.yaml")
    names = ", ".join(yaml.safe_load(Path(config).read_text())["series"])
    for given_, there in (([], ""), (["--config", config], f" (the configs define {names})")):
        with pytest.raises(SystemExit) as end:
            main(["study", *given_, "--series=nope"])
        assert end.value.code == 2
        assert (
            f"--series: 'nope' has no points. The option defines series, as configs/study do; it "
            f"does not select any{there}." in capsys.readouterr().err
        )


@pytest.mark.parametrize(
    "series", ["a: {points: {x: {model.alpha: 1.0}}}", '{"a": {}}', "null", "{a: [", "a:\n  b: 1"]
)
def test_series_in_yaml_are_passed_to_the_parser(series: str, tmp_path: Path) -> None:
    (tmp_path / "odd.yaml").write_text("series: {1: {}}\n")
    check_series([f"--config={tmp_path / 'odd.yaml'}", "--series", series])
    with pytest.raises(UsageError, match=r"the configs define 1\)"):
        check_series(["-c", str(tmp_path / "odd.yaml"), "--series", "x"])


PROMPTS = st.lists(
    st.lists(st.sampled_from(["a", "red", "bag", "dress", "on"]), min_size=1).map(" ".join),
    min_size=1,
)


@given(PROMPTS, st.integers(0, 3))
def test_prompt_files_apply_their_options(prompts: list[str], seed: int) -> None:
    file = PromptFile("x", drop_words=0.5, shuffle_words=True, seed=seed)
    made = file.make(prompts)
    assert made == file.make(prompts)
    assert len(made) == len(prompts)
    for new, old in zip(made, prompts, strict=True):
        assert new
        rest = old.split()
        for word in new.split():
            rest.remove(word)  # raises if it is not in the original
    shuffled = PromptFile("x", shuffle_words=True, seed=seed).make(prompts)
    assert [sorted(p.split()) for p in shuffled] == [sorted(p.split()) for p in prompts]
    having = [p for p in prompts if "red bag" in p]
    lacking = [p for p in prompts if "red bag" not in p]
    for kept, options in ((having, {"having": ["red bag"]}), (lacking, {"lacking": ["red bag"]})):
        if kept:
            assert PromptFile("x", **options).make(prompts) == kept
        else:
            with pytest.raises(UsageError, match="--prompt_files: nothing is left"):
                PromptFile("x", **options).make(prompts)


@given(st.floats(0.1, 1), st.integers(0, 3))
def test_a_share_keeps_the_order(share: float, seed: int) -> None:
    prompts = [f"prompt {i:03d}" for i in range(100)]
    made = PromptFile("x", share=share, seed=seed).make(prompts)
    assert len(made) == round(100 * share)
    assert made == sorted(set(made))


def test_prompt_files_are_reproducible() -> None:
    """A run repeated on another machine must have the same prompts."""
    prompts = ["a red bag on a navy background", "a blue dress on a gray background"]
    assert PromptFile("x", shuffle_words=True).make(prompts) == [
        "red navy on a background bag a",
        "background on dress a gray a blue",
    ]
    assert PromptFile("x", drop_words=0.5).make(prompts) == ["bag a", "a blue dress a gray"]
    swapped = PromptFile(
        "x", rewrite={r"^an? (\w+) (.+) on an? (\w+).*$": r"\3, \2 in \1", "bag": "tote"}
    )
    assert swapped.make(prompts) == ["navy, tote in red", "gray, dress in blue"]
    with pytest.raises(UsageError, match="share"):
        PromptFile("x", share=0)
    for pattern, replacement in (("(a", ""), ("(a)", r"\2"), ("a", r"\g<x>")):
        with pytest.raises(UsageError, match="--prompt_files: rewrite"):
            PromptFile("x", rewrite={pattern: replacement})
