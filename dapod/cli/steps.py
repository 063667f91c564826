"""steps.jsonl as the runner reads it: what each finished step came to.

The trainer writes it, one line a step; after a crash it cuts the file back to the checkpoint and
goes on.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dapod.cli.json_rows import Stamp, read_rows, stamp


@dataclass(frozen=True, kw_only=True)
class StepRow:
    """The part of one line that people are shown. The file has more."""

    step: int
    """Counts from 0."""
    accuracy: float
    reward_mean: float
    response_tokens_mean: float
    entropy_nats: float
    groups_kept: int
    groups_uniform: int
    """All correct or all wrong."""
    groups_failed: int
    tokens_generated: int
    tokens_trained: int
    staleness_mean: float
    seconds_total: float
    time_unix: float

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> "StepRow":
        """Raises `KeyError` for a key that the trainer must write and did not."""
        return cls(
            step=int(raw["step"]),
            accuracy=_number(raw["accuracy"]),
            reward_mean=_number(raw["reward_mean"]),
            response_tokens_mean=_number(raw["response_tokens_mean"]),
            entropy_nats=_number(raw["entropy_nats"]),
            groups_kept=int(raw["groups_kept"]),
            groups_uniform=int(raw["groups_all_correct"]) + int(raw["groups_all_wrong"]),
            groups_failed=int(raw["groups_failed"]),
            tokens_generated=int(raw["tokens_generated"]),
            tokens_trained=int(raw["tokens_trained"]),
            staleness_mean=_number(raw["staleness_mean"]),
            seconds_total=_number(raw["seconds_total"]),
            time_unix=float(raw["time_unix"]),
        )

    @property
    def informative(self) -> float:
        """Share of the groups sampled that were informative; NaN when none was sampled."""
        groups = self.groups_kept + self.groups_uniform + self.groups_failed
        return self.groups_kept / groups if groups else float("nan")

    @property
    def tokens_per_second(self) -> float:
        return self.tokens_generated / self.seconds_total if self.seconds_total else 0.0


def _number(value: float | None) -> float:
    """A mean over nothing is null in JSON."""
    return float("nan") if value is None else float(value)


def read_steps(file: Path) -> list[StepRow]:
    """All whole lines; one that is just being written is left for the next time."""
    return [StepRow.from_json(raw) for raw in read_rows(file)]


class StepLog:
    """Follows the file: `news()` gives each row once, even across a cut."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._stamp: Stamp | None = None
        self.rows: Sequence[StepRow] = ()
        self._seen: set[tuple[int, float]] = set()
        # A run that goes on begins with rows nobody needs to be told of.
        self.news()

    def news(self) -> list[StepRow]:
        """Rows that were not there at the last call."""
        now = stamp(self._file)
        if now == self._stamp:
            return []
        self._stamp = now
        self.rows = read_steps(self._file)
        new = [row for row in self.rows if (row.step, row.time_unix) not in self._seen]
        self._seen.update((row.step, row.time_unix) for row in new)
        return new
