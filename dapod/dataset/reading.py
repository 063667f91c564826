"""The one entry: a data section -> its rows, each prompt once, and what became of the others."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from dapod.config import ConfigError, Data
from dapod.config.source import HubSource, LocalSource
from dapod.dataset import hub, jsonl, procedural
from dapod.dataset.counts import Counts
from dapod.dataset.distinct import distinct
from dapod.dataset.layout import Layout
from dapod.dataset.parquet import ParquetReader
from dapod.dataset.rows import RawRow, Repeated, Row

JSON_LINES = (".jsonl", ".json")
PARQUET = ".parquet"


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """The rows of a run."""

    rows: list[Row]
    """In the order they were read in; never empty."""
    counts: Counts
    origin: str
    """Where they are from, with the hub's commit."""

    def digest(self) -> str:
        """Of messages and keys in their order: another data set is seen."""
        digest = hashlib.sha256()
        for row in self.rows:
            turns = [[message.role, message.content] for message in row.messages]
            digest.update(json.dumps([turns, row.answer]).encode())
        return digest.hexdigest()[:16]

    def __str__(self) -> str:
        return f"{self.origin}: {self.counts}"


def read_data(data: Data) -> DataSet:
    """Reads, checks and counts. Raises `ConfigError` for the first thing that is wrong."""
    origin, raw_rows = _open(data)
    layout = Layout(data=data)
    rows, counts = distinct(
        raw if isinstance(raw, Repeated) else layout.row(raw) for raw in raw_rows
    )
    if not rows:
        raise ConfigError(f"data.path: {origin} holds no rows")
    return DataSet(rows=rows, counts=counts, origin=origin)


def read_rows(data: Data) -> list[Row]:
    """The rows of `read_data`."""
    return read_data(data).rows


def _open(data: Data) -> tuple[str, Iterable[RawRow | Repeated]]:
    source = data.source
    if isinstance(source, LocalSource):
        return str(source.path), _read(local_files(source.path), data)
    if isinstance(source, HubSource):
        commit, files = hub.fetch(source)
        return f"{data.path} (commit {commit})", _read(files, data)
    origin = f"{data.path} (size {data.size}, seed {data.seed})"
    return origin, procedural.generate(source.dataset, size=data.size, seed=data.seed)


def local_files(path: Path) -> list[Path]:
    """The file, or the directory's parquet files by name."""
    if path.is_dir():
        if files := sorted(path.glob(f"*{PARQUET}")):
            return files
        raise ConfigError(f"data.path: the directory {path} holds no {PARQUET} files")
    if path.suffix not in (*JSON_LINES, PARQUET):
        raise ConfigError(
            f"data.path: {path} is neither {', '.join(JSON_LINES)} (JSON lines) nor {PARQUET}"
        )
    return [path]


def _read(files: Iterable[Path], data: Data) -> Iterator[RawRow | Repeated]:
    parquet = ParquetReader(data)
    for file in files:
        yield from parquet.read(file) if file.suffix == PARQUET else jsonl.read(file)
