"""Metrics as a CSV file that is whole at any moment, and that a continued run continues."""

import csv
import errno
import io
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger as LightningCSVLogger
from lightning.pytorch.utilities import rank_zero_only

from sid_lsg.files.replacing import replacing, writing

_STEP = "step"


class CSVLogger(LightningCSVLogger):
    """Write `metrics.csv`, one row per logged iteration, whoever logs.

    A row is appended when it is complete. Where that is not enough (a new column, more values of
    a row that is written, the first row of a continued run) the file is written anew under another
    name and renamed: whenever the process is killed, whole rows are left.

    A continued run keeps the rows up to its first iteration and drops those that it does again.
    """

    def __init__(self, save_dir: str = ".", name: str = "", version: str = "") -> None:
        """Choose the folder.

        Args:
            save_dir: Folder of the file; a relative one lies inside the run directory.
            name: Subfolder.
            version: Subfolder of that.
        """
        super().__init__(save_dir, name, version)
        self._row: dict[str, Any] = {}  # the newest iteration's
        self._dirty = False  # whether it holds what the file does not
        self._columns: list[str] = []  # of the file
        self._end = math.inf  # the iteration of the file's last row; at first it may be any
        self._done = math.inf  # the last iteration that is not done again

    @property
    def experiment(self) -> "CSVLogger":
        """Return the logger: Lightning's own writer would delete an earlier run's file."""
        return self

    def continue_from(self, iteration: int) -> None:
        """Let no later row of the run that is continued be a part of this one's."""
        self._done = iteration

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log a row, or more of the newest row's iteration."""
        if step is None:
            step = int(self._row.get(_STEP, -1)) + 1
        if step != self._row.get(_STEP):
            self.save()
            earlier = self._read() if step <= min(self._end, self._done) else []
            self._row = next((row for row in earlier if int(row[_STEP]) == step), {})
        values = {key: value.item() if hasattr(value, "item") else value
                  for key, value in metrics.items()}  # fmt: skip
        self._row |= values | {_STEP: step}
        self._dirty = True

    @rank_zero_only
    def save(self) -> None:
        """Write the newest row.

        Raises:
            UsageError: If that is impossible: the disk is full, say.
        """
        if not self._dirty:
            return
        end, self._end = self._end, math.inf  # if writing fails, nobody knows what is there
        step = int(self._row[_STEP])
        with writing(Path(self.log_dir), "trainer.default_root_dir"):
            if step > end and self._row.keys() <= set(self._columns):
                self._append()
            else:
                self._rewrite(step)
        self._end, self._dirty = step, False

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write what is left."""
        self.save()

    def log_hyperparams(self, params: Any = None) -> None:
        """Write nothing: the run directory's `config.yaml` holds them already."""

    @property
    def _path(self) -> Path:
        return Path(self.log_dir) / "metrics.csv"

    def _append(self) -> None:
        size = self._path.stat().st_size
        try:
            with self._path.open("ab", buffering=0) as file:
                line = _lines([self._row], self._columns).encode()
                if file.write(line) < len(line):  # killed before or after it, but not within
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            os.truncate(self._path, size)
            raise

    def _rewrite(self, step: int) -> None:
        """Write the rows before this iteration, and its row, in place of the file."""
        rows = [row for row in self._read() if int(row[_STEP]) < step] + [self._row]
        self._columns = sorted(set().union(*rows, self._columns))
        for leftover in self._path.parent.glob(f".{self._path.name}.*.tmp"):
            leftover.unlink(missing_ok=True)  # a killed process's
        with replacing(self._path) as temporary:
            header = dict(zip(self._columns, self._columns, strict=True))
            text = _lines([header, *rows], self._columns)
            temporary.write_text(text, encoding="utf-8", newline="")

    def _read(self) -> list[dict[str, Any]]:
        """Return the file's rows without empty fields; none that a crash has left incomplete."""
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
    """Return rows as CSV."""
    text = io.StringIO()
    csv.DictWriter(text, columns).writerows(rows)
    return text.getvalue()
