"""A file of JSON lines that follows the trainer's checkpoints: rows are added, and cut back after a
crash.

What is cut is kept in `<name>.superseded.jsonl` beside it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class RowLog:
    """`file` holds rows that are numbered by `key`."""

    def __init__(self, file: Path, *, key: str) -> None:
        self._rows = file
        self._superseded = file.with_suffix(f".superseded{file.suffix}")
        self._key = key

    def append(self, values: Mapping[str, Any]) -> None:
        """Adds a row and makes it durable."""
        _append(self._rows, [json.dumps(values)])

    def rows(self) -> list[dict[str, Any]]:
        """All whole rows."""
        if not self._rows.exists():
            return []
        lines = self._rows.read_text().splitlines()
        return [json.loads(line) for line in lines if self._number(line) is not None]

    def cut_back(self, end: int) -> int:
        """Keeps the rows numbered below `end`; returns how many were set aside."""
        if not self._rows.exists():
            return 0
        lines = self._rows.read_text().splitlines()
        numbers = [self._number(line) for line in lines]
        kept = [line for line, n in zip(lines, numbers, strict=True) if n is not None and n < end]
        gone = [line for line, n in zip(lines, numbers, strict=True) if n is not None and n >= end]
        if len(kept) < len(lines):
            if gone:
                _append(self._superseded, gone)
            beside = self._rows.with_suffix(".tmp")
            beside.unlink(missing_ok=True)
            _append(beside, kept)
            beside.replace(self._rows)
        return len(lines) - len(kept)

    def _number(self, line: str) -> int | None:
        """None for a line cut off by a crash."""
        try:
            return int(json.loads(line)[self._key])
        except (ValueError, KeyError, TypeError):
            return None


def _append(file: Path, lines: list[str]) -> None:
    with file.open("a") as stream:
        stream.writelines(f"{line}\n" for line in lines)
        stream.flush()
        os.fsync(stream.fileno())
