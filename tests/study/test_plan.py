"""The plan of a study: a run for each point and seed, and the plans that are rejected."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sid_lsg.messages.errors import UsageError
from sid_lsg.method.guidance import Kappas
from sid_lsg.study.options import Series, Teacher
from sid_lsg.study.plan import evaluations_per_image, slugify
from tests.helpers.small_studies import KAPPAS, asked, planned


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


@given(st.lists(st.text(max_size=12), min_size=1, max_size=3))
@pytest.mark.slow
def test_labels_become_file_names(parts: list[str]) -> None:
    name = slugify(*parts)
    assert name
    assert "/" not in name
    assert not name.startswith(".")
    assert name == slugify(name)
