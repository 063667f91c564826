"""evaluations.jsonl as the runner reads it: what the evaluated policies came to.

The trainer writes it (`services/trainer/evaluations.py` says what each key means).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dapod.cli.json_rows import read_rows, stamp


@dataclass(frozen=True, kw_only=True)
class EvaluationRow:
    """The part of one line that people are shown. The file has more."""

    policy_version: int
    samples: int
    problems: int
    problems_done: int
    avg: float | None
    """avg@K; None when nothing was judged."""
    low: float | None
    high: float | None
    """Ends of its interval."""
    dropped_because: str | None
    seconds: float
    time_unix: float

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> "EvaluationRow":
        """Raises `KeyError` for a key that the trainer must write and did not."""
        return cls(
            policy_version=raw["policy_version"],
            samples=raw["samples"],
            problems=raw["problems"],
            problems_done=raw["problems_done"],
            avg=raw["avg_at_k"],
            low=raw["avg_at_k_low"],
            high=raw["avg_at_k_high"],
            dropped_because=raw["dropped_because"],
            seconds=raw["seconds"],
            time_unix=raw["time_unix"],
        )


def read_evaluations(file: Path) -> list[EvaluationRow]:
    return [EvaluationRow.from_json(raw) for raw in read_rows(file)]


class EvaluationLog:
    """Follows the file: `news()` gives each row once, even across a cut."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._stamp = stamp(file)
        # A run that goes on begins with rows nobody needs to be told of.
        self._seen = set(read_evaluations(file))

    def news(self) -> list[EvaluationRow]:
        """Rows that were not there at the last call."""
        now = stamp(self._file)
        if now == self._stamp:
            return []
        self._stamp = now
        new = [row for row in read_evaluations(self._file) if row not in self._seen]
        self._seen.update(new)
        return new
