"""Parquet files, a few thousand rows at a time and only the columns asked for.

The published DAPO-Math-17k has 1.8 million rows, nearly all of them repetitions: as Python objects
they would take tens of GB and minutes. So rows that repeat an earlier one to the letter are passed
over while they are Arrow's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dapod.config import ConfigError, Data
from dapod.dataset.arrow_keys import row_keys
from dapod.dataset.layout import columns, find, missing
from dapod.dataset.rows import RawRow, Repeated

_BATCH_ROWS = 4096
_BUFFER_BYTES = 1 << 20


class ParquetReader:
    """Reads the files of one data set; knows the rows it has given."""

    def __init__(self, data: Data) -> None:
        self._data = data
        self._seen: set[str] = set()

    def read(self, path: Path) -> Iterator[RawRow | Repeated]:
        """Raises `ConfigError` naming a missing column, or the file that is no parquet."""
        import pyarrow
        import pyarrow.parquet

        try:
            # By default a row group's columns are read whole, and there may be only one group.
            with pyarrow.parquet.ParquetFile(
                path, pre_buffer=False, buffer_size=_BUFFER_BYTES
            ) as file:
                wanted = self._columns(file.schema_arrow, path)
                start = 1
                for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=wanted):
                    yield from self._new_rows(batch, path, start)
                    start += len(batch)
        except OSError as error:
            raise ConfigError(f"data.path: cannot read {path}: {error}") from error
        except pyarrow.ArrowException as error:
            raise ConfigError(f"data.path: {path} is not a parquet file: {error}") from error

    def _columns(self, schema: Any, path: Path) -> Sequence[str]:
        there = _tree(schema)
        for key in ("prompt_column", "answer_column"):
            name = getattr(self._data, key)
            try:
                find(there, name)
            except KeyError:
                raise missing(key, name, str(path), columns(there)) from None
        return [self._data.prompt_column, self._data.answer_column]

    def _new_rows(self, batch: Any, path: Path, start: int) -> Iterator[RawRow | Repeated]:
        new = self._new(batch)
        values = batch.take(new).to_pylist() if new else []
        for index, of_row in zip(new, values, strict=True):
            yield RawRow(place=f"{path} row {start + index}", values=of_row)
        if len(new) < len(batch):
            yield Repeated(rows=len(batch) - len(new))

    def _new(self, batch: Any) -> list[int]:
        """Which rows of the batch are no repetition."""
        new = []
        for index, key in enumerate(row_keys(batch)):
            if key is None or key not in self._seen:
                new.append(index)
            if key is not None:
                self._seen.add(key)
        return new


def _tree(fields: Any) -> dict[str, Any]:
    """Columns by name; a struct's are a dict of its own."""
    import pyarrow.types

    return {
        field.name: _tree(field.type) if pyarrow.types.is_struct(field.type) else field.type
        for field in fields
    }
