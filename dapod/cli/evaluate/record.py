"""What is written of one problem: a line of problems.jsonl, and one of responses.jsonl."""

from __future__ import annotations

import dataclasses
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from dapod.cli.evaluate.problems import Problem
from dapod.evaluation import ProblemScore, score
from dapod.types import FinishReason, Verdict

_EXTRACTED_CHARACTERS = 200
"""An extracted answer may be the whole response; this many characters of it tell enough."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One judged response."""

    text: str
    tokens: int
    finish_reason: FinishReason
    verdict: Verdict


@dataclass(frozen=True, kw_only=True)
class Answered:
    """A problem with all its answers."""

    problem: Problem
    answers: Sequence[Answer]

    def responses(self) -> dict[str, Any]:
        """The line with the texts."""
        return {
            "problem": self.problem.number,
            "message": self.problem.message,
            "answer": self.problem.answer,
            "responses": [
                {
                    "text": answer.text,
                    "tokens": answer.tokens,
                    "finish_reason": answer.finish_reason.value,
                    "outcome": answer.verdict.outcome.value,
                    "correct": answer.verdict.correct,
                    "extracted": answer.verdict.extracted,
                }
                for answer in self.answers
            ],
        }


@dataclass(frozen=True, kw_only=True)
class ProblemRecord:
    """A line of problems.jsonl."""

    problem: int
    """The row's number, from 0."""
    answer: str
    """The key."""
    judged: int
    """n: answers with a judgement."""
    correct: int
    majority: float | None
    """maj@n: 0, 1, or the share of a tie; null when nothing was judged."""
    outcomes: Mapping[str, int]
    extracted: Sequence[tuple[str, int]]
    """Extracted answers of judged responses and how often, the most frequent first."""
    tokens: int
    """Of all responses."""
    tokens_mean: float
    truncated: int
    """Responses cut at max_response_tokens."""
    start: int
    """Which start of the command this is from, from 1."""
    elapsed_seconds: float
    """Since sampling began in that start."""

    @property
    def score(self) -> ProblemScore:
        return ProblemScore(judged=self.judged, correct=self.correct, majority=self.majority)

    @classmethod
    def of(cls, answered: Answered, *, start: int, elapsed_seconds: float) -> Self:
        answers = answered.answers
        verdicts = [answer.verdict for answer in answers]
        scored = score(verdicts)
        extracted = Counter(
            verdict.extracted[:_EXTRACTED_CHARACTERS]
            for verdict in verdicts
            if verdict.correct is not None and verdict.extracted is not None
        )
        tokens = [answer.tokens for answer in answers]
        return cls(
            problem=answered.problem.number,
            answer=answered.problem.answer,
            judged=scored.judged,
            correct=scored.correct,
            majority=scored.majority,
            outcomes=dict(Counter(verdict.outcome.value for verdict in verdicts)),
            extracted=extracted.most_common(),
            tokens=sum(tokens),
            tokens_mean=round(statistics.fmean(tokens), 2),
            truncated=sum(answer.finish_reason is FinishReason.LENGTH for answer in answers),
            start=start,
            elapsed_seconds=round(elapsed_seconds, 3),
        )

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Self:
        extracted = [(str(text), int(count)) for text, count in raw["extracted"]]
        return cls(**{**raw, "extracted": extracted})

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)
