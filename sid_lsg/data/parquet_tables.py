"""Read tables from .parquet files; needs pyarrow."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from sid_lsg.data.table import Table
from sid_lsg.messages.errors import UsageError


class ParquetTable(Table):
    """Columns of a .parquet file; only those that are asked for are read."""

    unit = "row"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        try:
            import pyarrow  # noqa: F401
        except ImportError:
            raise UsageError(
                f"{path}: reading .parquet needs pyarrow: pip install 'sid-lsg[parquet]'."
            ) from None

    @cached_property
    def columns(self) -> list[str]:
        """The names of the columns."""
        with self._opened() as file:
            return file.schema_arrow.names

    def values(self, column: str) -> Iterator[tuple[int, object]]:
        """Yield the number and value of each row in a column."""
        self.check_once(column)
        return ((number, row[column]) for number, row in self._read([column]))

    def rows(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield the number and values of each row that is not blank."""
        return self._read(self._readable())

    def _readable(self) -> list[str]:
        """Return what to read of each column: of stored images only their paths."""
        from pyarrow import types

        with self._opened() as file:
            chosen = []
            for field in file.schema_arrow:
                parts = list(field.type) if types.is_struct(field.type) else [field]
                binary = (types.is_binary, types.is_large_binary)
                if not any(is_binary(part.type) for part in parts for is_binary in binary):
                    chosen.append(field.name)
                elif "path" in [part.name for part in parts if part is not field]:
                    chosen.append(f"{field.name}.path")
        return chosen

    def _read(self, chosen: list[str]) -> Iterator[tuple[int, dict[str, Any]]]:
        number = 0
        with self._opened() as file:
            for batch in file.iter_batches(columns=chosen):
                try:
                    columns = [column.to_pylist() for column in batch.columns]
                except UnicodeDecodeError as error:  # writers of .parquet do not check their text
                    raise UsageError(
                        f"{self.path}, column {chosen[0]!r}: a value is not UTF-8 "
                        f"({error.reason}); save it as UTF-8."
                    ) from None
                names = batch.schema.names
                for values in zip(*columns, strict=True):
                    number += 1
                    yield number, dict(zip(names, values, strict=True))

    @contextmanager
    def _opened(self) -> Iterator[Any]:
        import pyarrow
        from pyarrow import parquet

        try:
            with parquet.ParquetFile(self.path) as file:
                yield file
        except pyarrow.ArrowException as error:
            raise UsageError(f"{self.path}: not a readable parquet file ({error}).") from None
