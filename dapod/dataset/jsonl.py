"""JSON lines: one object a line, UTF-8; empty lines are skipped."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from dapod.config import ConfigError
from dapod.dataset.rows import RawRow


def read(path: Path) -> Iterator[RawRow]:
    """Line by line. Raises `ConfigError` naming the line."""
    try:
        # Not str.splitlines: it also cuts at U+2028, which JSON leaves unescaped inside strings.
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield _row(f"{path} line {number}", line)
    except OSError as error:
        raise ConfigError(f"data.path: cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"data.path: {path} is not UTF-8") from error


def _row(place: str, line: str) -> RawRow:
    try:
        values = json.loads(line)
    except ValueError as error:
        raise ConfigError(f"data.path: {place} is not JSON") from error
    if not isinstance(values, dict):
        raise ConfigError(f"data.path: {place} is not a JSON object")
    return RawRow(place=place, values=values)
