"""A teacher's numbers are computed once, and kept for runs with the same description."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from sid_lsg.metrics import kept_scores
from sid_lsg.metrics.kept_scores import kept, sampled
from tests.helpers import forked

CPU = torch.device("cpu")
IMAGES: dict[str, Any] = {
    "teacher": "abc", "prompts": ["a cat", "a dog"], "num_steps": 25, "guidance": 1.5,
    "device": CPU, "precision": "32-true",
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SID_LSG_CACHE", str(tmp_path))
    return tmp_path / "teachers"


def computed(about: dict[str, Any], value: float = 1.0) -> bool:
    """Ask for numbers with a value of its own; return True if they were computed."""
    return kept(about, lambda: {"fid": value}, "The scores")["fid"] == value


def test_numbers_are_computed_once_and_read_exactly(folder: Path) -> None:
    value = 1 / 3
    assert computed(sampled(**IMAGES), value)
    assert not computed(sampled(**IMAGES), 5.0)
    assert kept(sampled(**IMAGES), dict, "The scores") == {"fid": value}
    assert [path.suffix for path in folder.iterdir()] == [".json"]


@pytest.mark.parametrize(
    "change",
    [
        {"teacher": "abd"}, {"prompts": ["a cat", "a cow"]}, {"prompts": ["a dog", "a cat"]},
        {"prompts": ["a cat", "a dog", "a cat"]}, {"num_steps": 24}, {"guidance": 1.25},
        {"precision": "bf16-mixed"}, {"device": torch.device("meta")},
    ],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_another_description_is_computed_again(folder: Path, change: dict[str, Any]) -> None:
    assert computed(sampled(**IMAGES), 1.0)
    assert computed(sampled(**IMAGES | change), 2.0)
    assert not computed(sampled(**IMAGES), 3.0)


def test_a_change_of_the_code_computes_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert computed(sampled(**IMAGES), 1.0)
    monkeypatch.setattr(kept_scores, "_code", lambda: "changed")
    assert computed(sampled(**IMAGES), 2.0)


@pytest.mark.parametrize("damage", ["", "{", '{"numbers": [1]}', '{"numbers": {"fid": "x"}}', "[]"])
def test_a_damaged_file_is_computed_again(folder: Path, damage: str) -> None:
    assert computed(sampled(**IMAGES), 1.0)
    (file,) = folder.iterdir()
    file.write_text(damage)
    assert computed(sampled(**IMAGES), 2.0)
    assert json.loads(file.read_text())["numbers"] == {"fid": 2.0}


def test_numbers_that_are_not_finite_are_not_kept(folder: Path) -> None:
    kept(sampled(**IMAGES), lambda: {"fid": float("nan")}, "The scores")
    assert computed(sampled(**IMAGES), 1.0)


def test_the_files_used_longest_ago_are_removed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_scores, "LIMIT", 3)
    described = [sampled(**IMAGES | {"num_steps": steps}) for steps in (1, 2, 3, 4)]
    for turn, about in enumerate(described):
        if turn == 3:
            assert not computed(described[0], 9.0)  # used again
        assert computed(about, 1.0)
    assert len([*folder.glob("*.json")]) == 3
    assert not computed(described[0], 2.0)
    assert computed(described[1], 2.0)


def test_a_folder_that_cannot_be_written_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SID_LSG_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="Could not keep the teacher's numbers"):
        assert computed(sampled(**IMAGES), 1.0)


def one_of_two(path: Path) -> None:
    """Ask for numbers that take a while to compute."""

    def compute() -> dict[str, float]:
        with path.open("a") as file:
            file.write("computed\n")
        time.sleep(0.5)
        return {"fid": 1.0}

    assert kept(sampled(**IMAGES), compute, "The scores") == {"fid": 1.0}


@pytest.mark.slow
def test_two_runs_at_a_time_compute_once(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "calls"
    forked.all_end_well(one_of_two, [([path], {}), ([path], {})], tmp_path)
    assert path.read_text() == "computed\n"
