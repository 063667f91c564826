"""What the finished problems come to, while it goes on and at the end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from dapod.cli.evaluate.record import ProblemRecord
from dapod.evaluation import CONFIDENCE, Estimate, metrics


@dataclass(frozen=True, kw_only=True)
class Tally:
    """Counts over finished problems."""

    records: Sequence[ProblemRecord]
    samples: int
    """K."""
    pass_at: Sequence[int]

    @property
    def metrics(self) -> dict[str, Estimate]:
        scores = [record.score for record in self.records]
        return metrics(scores, rollouts=self.samples, pass_at=self.pass_at)

    @property
    def outcomes(self) -> dict[str, int]:
        """Answers by outcome."""
        total: Counter[str] = Counter()
        for record in self.records:
            total.update(record.outcomes)
        return dict(total.most_common())

    @property
    def answers(self) -> int:
        return sum(self.outcomes.values())

    @property
    def judged(self) -> int:
        return sum(record.judged for record in self.records)

    @property
    def unjudged_problems(self) -> list[int]:
        """Without a single judged answer: in no metric."""
        return sorted(record.problem for record in self.records if not record.judged)

    @property
    def short_problems(self) -> list[int]:
        """With fewer than K judged answers, but some."""
        return sorted(r.problem for r in self.records if 0 < r.judged < self.samples)

    @property
    def tokens(self) -> int:
        return sum(record.tokens for record in self.records)

    @property
    def truncated(self) -> int:
        return sum(record.truncated for record in self.records)

    @property
    def seconds(self) -> float:
        """Of sampling, over all starts of the command; what a killed one had unfinished is lost."""
        last: dict[int, float] = {}
        for record in self.records:
            last[record.start] = max(last.get(record.start, 0.0), record.elapsed_seconds)
        return sum(last.values())

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0

    def summary(self) -> dict[str, Any]:
        """For summary.json."""
        return {
            "problems": len(self.records),
            "samples": self.samples,
            "metrics": {
                name: {"value": found.value, **asdict(found.interval)}
                for name, found in self.metrics.items()
            },
            "confidence": CONFIDENCE,
            "answers": self.answers,
            "answers_judged": self.judged,
            "outcomes": self.outcomes,
            "problems_without_a_judged_answer": self.unjudged_problems,
            "problems_with_unjudged_answers": self.short_problems,
            "response_tokens": self.tokens,
            "response_tokens_mean": round(self.tokens / self.answers, 2) if self.answers else None,
            "truncated": self.truncated,
            "seconds_sampling": round(self.seconds, 1),
            "tokens_per_second": round(self.tokens_per_second, 1),
        }
