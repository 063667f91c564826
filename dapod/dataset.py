"""A data set as rows: JSON lines, a prompt and an answer each. Their order is the buffer's."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from dapod.config import ConfigError, Data


@dataclass(frozen=True, kw_only=True)
class Row:
    """One prompt of the data set."""

    message: str
    """The user's message, the template applied."""
    answer: str


def read_rows(data: Data) -> list[Row]:
    """All rows, in file order. Raises `ConfigError` naming the line and the missing column."""
    path = Path(data.path)
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        raise ConfigError(f"data.path: cannot read {path}: {error.strerror}") from error
    rows = [_row(data, line, number) for number, line in enumerate(lines, 1) if line.strip()]
    if not rows:
        raise ConfigError(f"data.path: {path} holds no rows")
    return rows


def _row(data: Data, line: str, number: int) -> Row:
    try:
        raw = json.loads(line)
    except ValueError as error:
        raise ConfigError(f"data.path: {data.path} line {number} is not JSON") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"data.path: {data.path} line {number} is not a JSON object")
    for key, column in (
        ("prompt_column", data.prompt_column),
        ("answer_column", data.answer_column),
    ):
        if column not in raw:
            raise ConfigError(
                f"data.{key}: {data.path} line {number} has no column {column!r} "
                f"(its columns: {', '.join(map(repr, raw))})"
            )
    prompt, answer = raw[data.prompt_column], raw[data.answer_column]
    return Row(message=data.template.replace("{prompt}", str(prompt)), answer=str(answer))
