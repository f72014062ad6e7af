"""Metrics as a CSV file that a continued run continues."""

import csv
import sys
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.csv_logs import _ExperimentWriter
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger as LightningCSVLogger
from lightning.pytorch.utilities import rank_zero_only


class CSVLogger(LightningCSVLogger):
    """Write `metrics.csv`, one row per logged iteration.

    Lightning's own logger begins the file anew whenever a run continues. This one keeps the rows
    before the first iteration that is logged again, so each iteration has one row.
    """

    def __init__(self, save_dir: str = ".", name: str = "", version: str = "") -> None:
        """Choose the folder.

        Args:
            save_dir: Folder of the file; a relative one lies inside the run directory.
            name: Subfolder.
            version: Subfolder of that.
        """
        # Never by Lightning's schedule, which knows nothing of complete rows.
        super().__init__(save_dir, name, version, flush_logs_every_n_steps=sys.maxsize)
        self._earlier: list[dict[str, Any]] = []
        self._step: int | None = None  # of the last row

    @property
    @rank_zero_experiment
    def experiment(self) -> _ExperimentWriter:
        """Return the writer; earlier rows, which it deletes, are written back at once."""
        path = Path(self.log_dir) / "metrics.csv"
        if self._experiment is None and path.is_file():
            self._earlier = self._read()
            self._write(self._earlier, super().experiment)
        return super().experiment

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        """Log a row, or more of the last one's iteration.

        Before the first, earlier rows of iterations that are done again are dropped.
        """
        writer = self.experiment
        kept = [row for row in self._earlier if step is None or int(row["step"]) < step]
        if len(kept) < len(self._earlier):
            self._write(kept, writer)
        self._earlier = []
        super().log_metrics({**self._begun(writer, step), **metrics}, step)
        self._step = step

    def _begun(self, writer: _ExperimentWriter, step: int | None) -> dict[str, Any]:
        """Take back what this iteration's row holds so far; else write the last row."""
        if step is None or step != self._step:
            writer.save()
            return {}
        if not writer.metrics:  # it was written already
            *others, last = self._read()
            self._write(others, writer)
            return {name: value for name, value in last.items() if value != ""}
        return writer.metrics.pop()

    def _read(self) -> list[dict[str, Any]]:
        with (Path(self.log_dir) / "metrics.csv").open(newline="") as file:
            return list(csv.DictReader(file))

    def log_hyperparams(self, params: Any = None) -> None:
        """Write nothing: the run directory's `config.yaml` holds them already."""

    def _write(self, rows: list[dict[str, Any]], writer: _ExperimentWriter) -> None:
        """Make these rows the file."""
        Path(writer.metrics_file_path).unlink(missing_ok=True)
        writer.metrics = [{name: v for name, v in row.items() if v != ""} for row in rows]
        writer.save()
