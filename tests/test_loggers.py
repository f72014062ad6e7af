"""A metrics file that survives being continued."""

import csv
from pathlib import Path

from sid_lsg.loggers import CSVLogger


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
    log(tmp_path, 20, 30, 40, value="second")  # from a checkpoint of step 15, say
    assert rows(tmp_path) == [(10, "first"), (20, "second"), (30, "second"), (40, "second")]


def test_rows_are_safe_before_the_first_new_one(tmp_path: Path) -> None:
    log(tmp_path, 10, 20, value="first")
    before = rows(tmp_path)
    logger = CSVLogger(str(tmp_path))
    assert logger.experiment is not None  # Lightning's writer deletes the file here
    assert rows(tmp_path) == before
    logger.save()
    assert rows(tmp_path) == before


def test_new_columns_join_old_rows(tmp_path: Path) -> None:
    log(tmp_path, 10, value="first")
    logger = CSVLogger(str(tmp_path))
    logger.log_metrics({"loss": 1.0, "fid": 2.0}, step=20)
    logger.save()
    with (tmp_path / "metrics.csv").open(newline="") as file:
        first, second = csv.DictReader(file)
    assert (first["fid"], second["fid"]) == ("", "2.0")
