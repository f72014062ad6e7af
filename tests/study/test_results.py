"""The results of a study: means, tables, plots and the results file."""

import math
import random
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from matplotlib.text import Text

from sid_lsg.cli import main
from sid_lsg.messages.errors import UsageError
from sid_lsg.study.plots import draw, plots
from sid_lsg.study.results import (
    EVALUATIONS_FILE,
    RUNS_FILE,
    Results,
    Row,
    read_results,
    read_rows,
    split,
    suffix,
    write_results,
)
from sid_lsg.study.statistics import groups, mean
from sid_lsg.study.tables import markdown, number

NUMBERS = st.floats(-1e6, 1e6)


def row(point: str, seed: int, images: int = 64, **other: Any) -> Row:
    return {
        "kind": "generator", "series": "LSG", "point": point, "scored_prompts": "p.txt",
        "seed": seed, "num_steps": 1, "images_seen": images, "final": int(images == 64),
        "fid_clip_2k": 1.0 + seed, "clip_score_clip_2k": 0.9, "precision_clip_2k": 0.8,
        "recall_clip_2k": 0.7, **other,
    }  # fmt: skip


def teacher(guidance: float, steps: int = 25, **other: Any) -> Row:
    return {
        "kind": "teacher", "series": "teacher", "point": f"{guidance:g}", "guidance": guidance,
        "scored_prompts": "p.txt", "num_steps": steps, "final": 1, "fid_clip_2k": 0.4,
        "clip_score_clip_2k": 0.91, "precision_clip_2k": 0.9, "recall_clip_2k": 0.95, **other,
    }  # fmt: skip


def written(folder: Path, point: str, fids: dict[int, float]) -> Results:
    """Write and return the results of a study: the teacher, and a run per seed with its FID."""
    scored = {"scored_prompts": "p.txt", "num_steps": 1, "final": 1}
    results = Results(
        [{"run": f"lsg-seed{seed}", "points": [["LSG", point]], "seed": seed} for seed in fids],
        [{"model": "teacher", "guidance": 1.0, "fid_clip_2k": 0.4} | scored]
        + [{"model": f"lsg-seed{seed}", "images_seen": 64, "fid_clip_2k": fid} | scored
           for seed, fid in fids.items()],
    )  # fmt: skip
    write_results(results, folder)
    return results


ROWS = [
    teacher(1), teacher(1.5),
    *(row(point, seed, images) for point in ("1", "1.5") for seed in (0, 1, 2)
      for images in (32, 64)),
]  # fmt: skip


@given(st.lists(NUMBERS, min_size=2, max_size=8))
def test_means_and_error_bars(values: list[float]) -> None:
    average, deviation = mean(values, "std")
    assert deviation is not None
    assert math.isclose(average, statistics.fmean(values), rel_tol=1e-9, abs_tol=1e-9)
    assert math.isclose(deviation, statistics.stdev(values), rel_tol=1e-6, abs_tol=1e-6)
    _, error = mean(values, "sem")
    assert error is not None
    assert math.isclose(error * math.sqrt(len(values)), deviation, rel_tol=1e-9)


def test_one_seed_has_no_error_bar() -> None:
    assert mean([2.5], "std") == (2.5, None)
    assert number(mean([2.5], "std")) == "2.500"
    assert number(mean([2.0, 3.0], "std")) == "2.500 ± 0.707"
    assert number(None) == "-"


@given(st.permutations(ROWS))
def test_the_order_of_the_rows_does_not_matter(rows: Sequence[Row]) -> None:
    assert sorted(groups(rows, "std")) == sorted(groups(ROWS, "std"))


def test_groups_take_final_or_all_evaluations() -> None:
    ends = groups(ROWS, "std")
    assert [(g.kind, g.point, g.seeds) for g in ends] == [
        ("teacher", "1", 1), ("teacher", "1.5", 1), ("generator", "1", 3), ("generator", "1.5", 3),
    ]  # fmt: skip
    assert ends[2].scores["fid"] == (2.0, 1.0)
    every = groups(ROWS, "std", final=False)
    assert [g.images_seen for g in every] == [0, 0, 32, 64, 32, 64]
    assert groups([row("1", 0, 32)], "std") == []


def test_table(tmp_path: Path) -> None:
    text = markdown(ROWS, "sem")
    assert "`clip_2k`" in text
    assert "± their standard error of the mean" in text
    assert (
        "| series | point | steps | images seen | seeds | FID | CLIP | precision | recall |" in text
    )
    assert "| teacher | guidance 1.5 | 25 | - | - | 0.400 | 0.910 | 0.900 | 0.950 |" in text
    assert "| LSG | 1.5 | 1 | 64 | 3 | 2.000 ± 0.577 | 0.900 ± 0.000 |" in text
    assert "error" not in markdown([row("1", 0)], "std")
    others = [row("1", 0), row("1", 0, scored_prompts="q.txt")]
    assert markdown(others, "std").count("Scored on") == 2
    assert markdown([], "std") == "No run has finished yet.\n"


@pytest.mark.slow
def test_plots_are_reproducible_bitwise(tmp_path: Path) -> None:
    rows = [*ROWS, row("1.5", 0, num_steps=2), teacher(1.5, 2)]
    first, second = draw(rows, "std", tmp_path / "a"), draw(rows, "std", tmp_path / "b")
    assert [path.name for path in first] == [
        f"{name}.png"
        for name in ("fid_clip", "precision_recall", "fid_images", "fid_steps", "scores")
    ]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    found = texts(plots(rows, "std")["fid_clip"])
    assert {"CLIP score", "FID", "LSG, sampled in 1 step", "teacher, 25 steps"} <= found
    assert any(text.endswith("error bars: standard deviation") for text in found)


def texts(figure: Figure) -> set[str]:
    """Return all texts of a figure."""
    return {text.get_text() for text in figure.findobj(Text) if isinstance(text, Text)}


def test_clip_scores_alone_make_a_table_and_plots(tmp_path: Path) -> None:
    """A config with a CLIP model and no reference gives only CLIP scores."""
    other = ("fid", "precision", "recall")
    plain = [{k: v for k, v in r.items() if not k.startswith(other)} for r in ROWS]
    assert "| LSG | 1.5 | 1 | 64 | 3 | 0.900 ± 0.000 |" in markdown(plain, "std")
    assert {path.stem for path in draw(plain, "std", tmp_path)} == {"scores"}


@pytest.mark.slow
def test_missing_scores_are_not_drawn(tmp_path: Path) -> None:
    plain = [{k: v for k, v in r.items() if not k.startswith("fid")} for r in ROWS]
    assert {path.stem for path in draw(plain, "std", tmp_path)} == {"precision_recall", "scores"}
    assert {path.stem for path in draw(ROWS, "std", tmp_path)} == {
        "fid_clip", "precision_recall", "fid_images", "scores",
    }  # fmt: skip
    assert draw([], "std", tmp_path) == []
    for prompts in ("p.txt", "q.txt"):  # several panels
        assert draw([*ROWS, row("1", 0, scored_prompts=prompts)], "std", tmp_path)


@pytest.mark.slow
def test_a_plot_of_earlier_rows_is_deleted(tmp_path: Path) -> None:
    draw(ROWS, "std", tmp_path)
    draw([{k: v for k, v in r.items() if not k.startswith("fid")} for r in ROWS], "std", tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"precision_recall.png", "scores.png"}


def test_a_teacher_of_too_few_steps_is_drawn_only_over_steps() -> None:
    few = teacher(1, steps=1, fid_clip_2k=130.0)

    def shown(rows: Sequence[Row]) -> set[str]:
        """Return the plots that show the teacher with one step, or one step on their axis."""
        figures = plots(rows, "std")
        named = {name for name, figure in figures.items() if "teacher, 1 step" in texts(figure)}
        return named | {"fid_steps"} & figures.keys()

    assert shown([few, *ROWS]) == {"fid_steps"}
    assert shown([few, teacher(1)]) == {"fid_clip", "precision_recall", "fid_steps"}


@given(
    st.lists(
        st.tuples(st.floats(allow_nan=False, allow_infinity=False), st.integers(0, 9)),
        unique_by=lambda v: v[1],
    )
)
def test_rows_are_stored_bitwise(
    tmp_path_factory: pytest.TempPathFactory, values: list[tuple[float, int]]
) -> None:
    folder = tmp_path_factory.mktemp("study")
    results = written(folder, 'a, "b"', dict(map(reversed, values)))
    assert read_results(folder) == results
    again = folder / "again"
    again.mkdir()
    write_results(read_results(folder), again)
    for name in (RUNS_FILE, EVALUATIONS_FILE):
        assert (again / name).read_bytes() == (folder / name).read_bytes()


def test_a_run_counts_once(tmp_path: Path) -> None:
    """Equal points of two studies, or a folder given twice, do not count as further seeds."""
    first, second = tmp_path / "a", tmp_path / "b"
    for seed, folder in enumerate((first, second)):
        folder.mkdir()
        written(folder, "1.5", {seed: 1.0})
    both = read_rows([str(first), str(second)])
    assert [row["kind"] for row in both] == ["teacher", "generator", "generator"]
    message = r"LSG, 1\.5, seed 0 is in them twice, after 64 images"
    with pytest.raises(UsageError, match=message):
        read_rows([str(first), str(second), str(first)])


def test_a_run_stands_at_each_of_its_points(tmp_path: Path) -> None:
    results = written(tmp_path, "1.5", {0: 2.0, 1: 3.0})
    results.runs[0]["points"].append(["other", "x"])
    teachers, *rows = results.rows()
    assert (teachers["kind"], teachers["series"], teachers["point"]) == ("teacher", "teacher", "1")
    found = [(r["kind"], r["series"], r["point"], r["seed"], r["fid_clip_2k"]) for r in rows]
    assert found == [
        ("generator", "LSG", "1.5", 0, 2.0), ("generator", "other", "x", 0, 2.0),
        ("generator", "LSG", "1.5", 1, 3.0),
    ]  # fmt: skip
    results.runs.pop()
    with pytest.raises(ValueError, match="does not have the run 'lsg-seed1'"):
        results.rows()


def test_scores_are_distinguished_from_other_values() -> None:
    found = split({
        "fid_clip_2k": "1.5", "clip_score_clip_2k": 0.9, "fid_clip_2k_4_steps": 2.0,
        "recall_fast_1000_1_step": 0.5, "teacher_fid_clip_2k": 9, "loss_g": 3, "kid_clip_2k": "",
        "precision": 1.0,
    })  # fmt: skip
    assert found == {
        None: {"fid_clip_2k": 1.5, "clip_score_clip_2k": 0.9},
        4: {"fid_clip_2k": 2.0},
        1: {"recall_fast_1000": 0.5},
    }


def test_scores_of_several_protocols_are_rejected() -> None:
    assert suffix(ROWS) == "clip_2k"
    assert suffix([]) == ""
    assert suffix([{"clip_score_clip_2k": 1, "fid_clip_2k": 2}]) == "clip_2k"
    assert suffix([{"clip_score_fast_1k": 1}]) == "fast_1k"
    assert (
        suffix([{"fid_patch_crop299_1k": 1, "fid_clip_2k": 2, "cmmd_clip336_2k": 3}]) == "clip_2k"
    )
    with pytest.raises(UsageError, match="cmmd of clip336_1k and own_clip336_1k are not comp"):
        suffix([{"cmmd_clip336_1k": 1}, {"cmmd_own_clip336_1k": 1}])
    with pytest.raises(UsageError, match="clip_10k and fast_1k are not comparable"):
        suffix([{"clip_score_fast_1k": 1}, {"clip_score_clip_10k": 1}])
    with pytest.raises(UsageError, match="clean256_30k and clip_2k are not comparable"):
        suffix([*ROWS, {"fid_clean256_30k": 8.7}])


HEADER = "model,scored_prompts,num_steps,guidance,images_seen,final,evaluations_per_image,fid_x\n"
RUN = '{"run": "a-seed0", "points": [["a", "1"]], "seed": 0}\n'


@pytest.mark.parametrize(
    ("runs", "evaluations", "reason"),
    [
        (None, None, "runs.jsonl: No such file or directory"),
        (RUN, None, "evaluations.csv: No such file or directory"),
        ("", HEADER, "it has no evaluations"),
        ("", "a,b\n1,2\n", "evaluations.csv lacks columns"),
        ("", "", "evaluations.csv lacks columns"),
        ("{", HEADER, "Expecting property name"),
        ("[1]\n", HEADER, "runs.jsonl has a line that describes no run"),
        (RUN, f"{HEADER}a-seed0,p,1,,64,1,1", "a row that is not as long as its header, in line 2"),
        (RUN, f"{HEADER}a-seed0,p,1,,64,1,1,x\n", "could not convert string to float"),
        (RUN, f"{HEADER}a-seed1,p,1,,64,1,1,2.0\n", "does not have the run 'a-seed1'"),
        (RUN, f"{HEADER}teacher,p,1,,,1,1,2.0\n", "a row of the teacher without guidance"),
    ],
)
def test_a_folder_without_results_is_rejected(
    tmp_path: Path, runs: str | None, evaluations: str | None, reason: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    for name, text in ((RUNS_FILE, runs), (EVALUATIONS_FILE, evaluations)):
        if text is not None:
            (tmp_path / name).write_text(text)
    with pytest.raises(SystemExit) as end:
        main(["study", "--results", f"[{tmp_path}]", "--output", str(tmp_path / "out")])
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert f"--results: cannot use {str(tmp_path)!r}" in error
    assert reason in error
    assert "Traceback" not in error


@pytest.mark.slow
def test_many_points_are_drawn(tmp_path: Path) -> None:
    """There are more lines than colors and markers."""
    draw_of = random.Random(0)
    rows = [
        row(str(i), seed, images, series=f"series {i % 13}", fid_clip_2k=draw_of.random() * 10)
        for i in range(40) for seed in (0, 1) for images in (32, 64)
    ]  # fmt: skip
    assert len(draw(rows, "sem", tmp_path)) == 4
