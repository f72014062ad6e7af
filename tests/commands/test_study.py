"""The study command: a small study end to end, its listing and the series on its command line."""

import csv
import json
import sys
import time
from pathlib import Path

import pytest
import yaml

from sid_lsg.cli import main
from sid_lsg.commands.study import check_series
from sid_lsg.messages.errors import UsageError
from tests.helpers.interpreter import interpreter
from tests.helpers.paths import REPOSITORY
from tests.helpers.small_studies import DEMO


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
