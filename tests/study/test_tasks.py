"""The tasks of a study: their commands, recorded options and continuing."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sid_lsg.messages.errors import UsageError
from sid_lsg.study.options import Series, Teacher
from sid_lsg.study.tasks import Task, differences, jobs
from tests.helpers.small_studies import DEMO, KAPPAS, asked, names, planned, task


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
