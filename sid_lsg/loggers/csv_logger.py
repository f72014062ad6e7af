"""Metrics as a CSV file that a continued run continues."""

import csv
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
        super().__init__(save_dir, name, version)
        self._earlier: list[dict[str, Any]] = []

    @property
    @rank_zero_experiment
    def experiment(self) -> _ExperimentWriter:
        """Return the writer; earlier rows, which it deletes, are written back at once."""
        path = Path(self.log_dir) / "metrics.csv"
        if self._experiment is None and path.is_file():
            with path.open(newline="") as file:
                self._earlier = list(csv.DictReader(file))
            self._write(self._earlier, super().experiment)
        return super().experiment

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        """Log a row; before the first, drop earlier rows of iterations that are done again."""
        writer = self.experiment
        kept = [row for row in self._earlier if step is None or int(row["step"]) < step]
        if len(kept) < len(self._earlier):
            self._write(kept, writer)
        self._earlier = []
        super().log_metrics(metrics, step)

    def log_hyperparams(self, params: Any = None) -> None:
        """Write nothing: the run directory's `config.yaml` holds them already."""

    def _write(self, rows: list[dict[str, Any]], writer: _ExperimentWriter) -> None:
        """Make these rows the file."""
        Path(writer.metrics_file_path).unlink(missing_ok=True)
        writer.metrics = [{name: v for name, v in row.items() if v != ""} for row in rows]
        writer.save()
