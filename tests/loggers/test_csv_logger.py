"""Logging to a CSV file."""

import csv
import errno
import re
import warnings
from pathlib import Path
from typing import Any

import pytest

from sid_lsg.loggers import CSVLogger
from sid_lsg.messages.errors import UsageError


def rows(folder: Path) -> list[tuple[int, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return [(int(row["step"]), row["loss"]) for row in csv.DictReader(file)]


def log(folder: Path, *steps: int, value: str) -> None:
    logger = CSVLogger(str(folder))
    for step in steps:
        logger.log_metrics({"loss": value}, step=step)  # type: ignore[dict-item]
    logger.save()


def test_a_continued_run_has_one_row_for_each_step(tmp_path: Path) -> None:
    log(tmp_path, 10, 20, 30, value="first")
    log(tmp_path, 20, 30, 40, value="second")  # for example from a checkpoint of step 15
    assert rows(tmp_path) == [(10, "first"), (20, "second"), (30, "second"), (40, "second")]


def test_everything_logged_at_one_step_is_one_row(tmp_path: Path) -> None:
    """Scores and losses of a step are logged separately; Lightning would flush at step 99."""
    logger = CSVLogger(str(tmp_path))
    for step in (98, 99, 100):
        logger.log_metrics({"fid": step / 2}, step=step)
        logger.log_metrics({"loss": step}, step=step)
        path = tmp_path / "metrics.csv"
        written = list(csv.DictReader(path.read_text().splitlines())) if path.exists() else []
        assert len(written) == step - 98  # complete rows are on the disk
    logger.save()
    logger.log_metrics({"fid": 1, "kid": 2}, step=100)  # final scores, after a save
    logger.save()
    with (tmp_path / "metrics.csv").open() as file:
        found = [(row["step"], row["fid"], row["loss"], row["kid"]) for row in csv.DictReader(file)]
    assert found == [("98", "49.0", "98", ""), ("99", "49.5", "99", ""), ("100", "1", "100", "2")]


def test_opening_a_log_keeps_its_rows(tmp_path: Path) -> None:
    log(tmp_path, 10, 20, value="first")
    before = rows(tmp_path)
    logger = CSVLogger(str(tmp_path))
    assert logger.experiment is logger  # Lightning's writer would delete the file here
    assert rows(tmp_path) == before
    logger.save()
    assert rows(tmp_path) == before


def test_new_columns_are_added_to_old_rows(tmp_path: Path) -> None:
    log(tmp_path, 10, value="first")
    logger = CSVLogger(str(tmp_path))
    logger.log_metrics({"loss": 1.0, "other": 2.0}, step=20)
    logger.save()
    with (tmp_path / "metrics.csv").open(newline="") as file:
        first, second = csv.DictReader(file)
    assert (first["other"], second["other"]) == ("", "2.0")


def test_final_scores_join_the_last_row_of_a_finished_run(tmp_path: Path) -> None:
    """A run that was killed in the final comparison only repeats the comparison."""
    log(tmp_path, 1, 2, value="a")
    logger = CSVLogger(str(tmp_path))
    logger.log_metrics({"fid": 1.0}, step=2)
    logger.finalize("success")
    with (tmp_path / "metrics.csv").open(newline="") as file:
        found = [(row["step"], row["loss"], row["fid"]) for row in csv.DictReader(file)]
    assert found == [("1", "a", ""), ("2", "a", "1.0")]


def test_a_repeated_row_keeps_nothing_of_the_old_one(tmp_path: Path) -> None:
    """The run resumes from iteration 2, and the repeated rows do not get the old scores."""
    logger = CSVLogger(str(tmp_path))
    for step in (1, 2, 3, 4):
        logger.log_metrics({"loss": 1.0, "fid": step}, step=step)
    logger.save()
    again = CSVLogger(str(tmp_path))
    again.continue_from(2)
    for step in (3, 4):
        again.log_metrics({"loss": 2.0}, step=step)
    again.save()
    with (tmp_path / "metrics.csv").open(newline="") as file:
        found = [(row["step"], row["loss"], row["fid"]) for row in csv.DictReader(file)]
    assert found == [("1", "1.0", "1"), ("2", "1.0", "2"), ("3", "2.0", ""), ("4", "2.0", "")]


@pytest.mark.parametrize("lost", [1, 2, 3, 5, 6, 8, 14])
def test_a_truncated_row_is_dropped(tmp_path: Path, lost: int) -> None:
    """The remaining digits of a truncated row may look like a whole number."""
    log(tmp_path, 10, 11, value="1.25")
    path = tmp_path / "metrics.csv"
    text = path.read_bytes()
    assert text.endswith(b"1.25,11\r\n")
    path.write_bytes(text[:-lost])
    log(tmp_path, 12, value="new")
    assert rows(tmp_path) == [*([(10, "1.25")] if lost < 10 else []), (12, "new")]


@pytest.mark.parametrize("text", ["", "loss,st", "loss,step\r\n", "\0\0\0", "loss,step\r\n\0\0\n"])
def test_a_file_without_a_complete_row_is_started_anew(tmp_path: Path, text: str) -> None:
    (tmp_path / "metrics.csv").write_text(text, newline="")
    log(tmp_path, 1, 2, value="a")
    assert rows(tmp_path) == [(1, "a"), (2, "a")]


def test_most_rows_are_appended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a long log would be rewritten thousands of times."""
    rewritten: list[int] = []
    rewrite = CSVLogger._rewrite
    monkeypatch.setattr(
        CSVLogger,
        "_rewrite",
        lambda self, new: (rewritten.append(new[0]["step"]), rewrite(self, new)),
    )
    logger = CSVLogger(str(tmp_path))
    for step in range(1, 31):
        logger.log_metrics({"loss": step} if step < 20 else {"loss": step, "fid": 1.0}, step)
        logger.save()
        logger.save()
    assert rewritten == [1, 20]
    assert rows(tmp_path) == [(step, str(step)) for step in range(1, 31)]


@pytest.mark.parametrize("column", ["loss", "new"])
def test_a_full_disk_loses_no_earlier_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, column: str
) -> None:
    """Neither appending a row nor rewriting the file loses earlier rows."""
    logger = CSVLogger(str(tmp_path))
    logger.log_metrics({"loss": "a"}, 1)
    logger.log_metrics({"loss": "a"}, 2)
    logger.save()
    opened = Path.open

    def full(path: Path, mode: str = "r", *rest: Any, **options: Any) -> Any:
        if mode[0] == "r":
            return opened(path, mode, *rest, **options)
        with opened(path, mode, *rest, **options) as file:
            file.write(b"7," if "b" in mode else "7,")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "open", full)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in (3, 4):
            logger.log_metrics({"loss": "b", column: "b"}, step)
            logger.save()
            logger.save()
    (warning,) = caught
    assert re.search(r"--trainer\.default_root_dir.*No space left", str(warning.message))
    assert "No space left" in logger.unwritten  # so no checkpoint is saved without its rows
    with pytest.raises(UsageError, match="No space left"):
        logger.finalize("success")
    monkeypatch.undo()
    assert rows(tmp_path)[:2] == [(1, "a"), (2, "a")]
    logger.log_metrics({"loss": "c"}, 5)  # the disk has space again
    logger.save()
    assert logger.unwritten == ""
    assert rows(tmp_path) == [(1, "a"), (2, "a"), (3, "b"), (4, "b"), (5, "c")]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]


def test_leftovers_of_a_killed_process_are_deleted(tmp_path: Path) -> None:
    (tmp_path / ".metrics.csv.123.tmp").write_text("loss,st")
    log(tmp_path, 1, value="a")
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]


def test_the_configuration_is_not_written_again(tmp_path: Path) -> None:
    logger = CSVLogger(str(tmp_path))
    logger.log_hyperparams({"a": 1})
    logger.log_metrics({"loss": 1.0}, step=1)
    logger.save()
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]
