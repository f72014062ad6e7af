"""Log metrics to a CSV file that survives crashes and that a resumed run continues."""

import csv
import errno
import io
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger as LightningCSVLogger
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn

from sid_lsg.files.replacing import replacing, writing
from sid_lsg.messages.errors import UsageError

_STEP, _NAME = "step", "metrics.csv"


class CSVLogger(LightningCSVLogger):
    """Write `metrics.csv` with one row per logged iteration.

    A row is appended when it is complete. If that is not enough (a new column, more values for a
    written row, the first row of a resumed run), the file is rewritten under another name and
    renamed. So only whole rows remain if the process is killed.

    A resumed run keeps the rows up to its first iteration and drops the rows that it repeats.

    Attributes:
        unwritten: Why the newest rows could not be written; "" if they are written.
    """

    def __init__(self, save_dir: str = ".", name: str = "", version: str = "") -> None:
        """Choose the folder.

        Args:
            save_dir: Folder of the file; a relative path starts at the run directory.
            name: Subfolder.
            version: Subfolder of that.
        """
        super().__init__(save_dir, name, version)
        self._row: dict[str, Any] = {}  # of the newest iteration
        self._dirty = False  # True if `_row` has values that are not in the file
        self.unwritten = ""
        self._pending: list[dict[str, Any]] = []  # earlier rows that could not be written
        self._columns: list[str] = []  # of the file
        self._end = math.inf  # iteration of the file's last row; inf if unknown
        self._done = math.inf  # last iteration that is not repeated

    @property
    def experiment(self) -> "CSVLogger":
        """Return this logger: Lightning's own writer would delete an earlier run's file."""
        return self

    def continue_from(self, iteration: int) -> None:
        """Resume after an iteration: do not merge the earlier run's later rows into new rows."""
        self._done = iteration

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Start a row, or add values to the newest row if it has the same step."""
        if step is None:
            step = int(self._row.get(_STEP, -1)) + 1
        if step != self._row.get(_STEP):
            self.save()
            if self._dirty:
                self._pending.append(self._row)
            earlier = self._read() if step <= min(self._end, self._done) else []
            self._row = next((row for row in earlier if int(row[_STEP]) == step), {})
        values = {key: value.item() if hasattr(value, "item") else value
                  for key, value in metrics.items()}  # fmt: skip
        self._row |= values | {_STEP: step}
        self._dirty = True

    @rank_zero_only
    def save(self) -> None:
        """Write the newest row, and those before that could not be written.

        If the file cannot be written, for example because the disk is full, warn once and keep the
        rows. They are written when there is room.
        """
        if not self._dirty:
            return
        end, self._end = self._end, math.inf  # unknown if writing fails
        rows = [*self._pending, self._row]
        known = set(self._columns)
        try:
            with writing(Path(self.log_dir), "trainer.default_root_dir"):
                if int(rows[0][_STEP]) > end and all(row.keys() <= known for row in rows):
                    self._append(rows)
                else:
                    self._rewrite(rows)
        except UsageError as error:
            if not self.unwritten:
                rank_zero_warn(f"{error} The rows of {_NAME} are kept until then.")
            self.unwritten = str(error)
            return
        self._end, self._dirty = int(self._row[_STEP]), False
        self._pending, self.unwritten = [], ""

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write the last row.

        Raises:
            UsageError: If a completed run's rows cannot be written.
        """
        self.save()
        if self.unwritten and status == "success":
            raise UsageError(self.unwritten)

    def log_hyperparams(self, params: Any = None) -> None:
        """Do nothing: the run directory's `config.yaml` has the hyperparameters."""

    @property
    def _path(self) -> Path:
        return Path(self.log_dir) / _NAME

    def _append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        size = self._path.stat().st_size
        try:
            with self._path.open("ab", buffering=0) as file:
                lines = _lines(rows, self._columns).encode()
                if file.write(lines) < len(lines):  # one call: a kill does not split a row
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            os.truncate(self._path, size)
            raise

    def _rewrite(self, new: Sequence[dict[str, Any]]) -> None:
        """Replace the file by the rows before the new ones, and these."""
        step = int(new[0][_STEP])
        rows = [*(row for row in self._read() if int(row[_STEP]) < step), *new]
        self._columns = sorted(set().union(*rows, self._columns))
        for leftover in self._path.parent.glob(f".{self._path.name}.*.tmp"):
            leftover.unlink(missing_ok=True)  # left by a killed process
        with replacing(self._path) as temporary:
            header = dict(zip(self._columns, self._columns, strict=True))
            text = _lines([header, *rows], self._columns)
            temporary.write_text(text, encoding="utf-8", newline="")

    def _read(self) -> list[dict[str, Any]]:
        """Return the file's rows without empty fields; skip rows that a crash left incomplete."""
        if not self._path.is_file():
            return []
        text = self._path.read_bytes().decode(errors="replace")
        header, *rows = [*csv.reader(io.StringIO(text[: text.rfind("\n") + 1]))] or [[]]
        whole = (
            {name: value for name, value in zip(header, row, strict=True) if value != ""}
            for row in rows
            if len(row) == len(header)
        )
        return [row for row in whole if row.get(_STEP, "").isdecimal()]


def _lines(rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """Format rows as CSV."""
    text = io.StringIO()
    csv.DictWriter(text, columns).writerows(rows)
    return text.getvalue()
