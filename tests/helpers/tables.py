"""Tables of every kind."""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

KINDS = ["jsonl", "csv", "tsv", "parquet"]


def write_table(path: Path, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Path:
    """Write rows as the kind of table that the suffix names; text with a byte order mark."""
    if path.suffix == ".parquet":
        pyarrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        table = {name: [row[i] for row in rows] for i, name in enumerate(columns)}
        parquet.write_table(pyarrow.table(table), path)
        return path
    if path.suffix == ".jsonl":
        lines = (json.dumps(dict(zip(columns, row, strict=True))) for row in rows)
        text = "".join(f"{line}\n" for line in lines)
    else:
        file = io.StringIO(newline="")
        writer = csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writerows([columns, *rows])
        text = file.getvalue()
    path.write_bytes(text.encode("utf-8-sig"))
    return path
