"""The nouns that cross a boundary between services, and nothing else.

Arrays are numpy, one-dimensional, `int32` for token ids and `float32` for log-probs.
How they travel is in `wire`; what the paper does with them is in `algorithm`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt

TokenIds = npt.NDArray[np.int32]
LogProbs = npt.NDArray[np.float32]


class Outcome(StrEnum):
    """What the verification of one rollout came to."""

    CORRECT = "correct"
    WRONG = "wrong"
    UNPARSED = "unparsed"
    TIMEOUT = "timeout"
    KILLED = "killed"
    ERROR = "error"

    @property
    def judged(self) -> bool:
        """Whether there is a judgement at all; a verifier's failure is none."""
        return self in (Outcome.CORRECT, Outcome.WRONG, Outcome.UNPARSED)


class FinishReason(StrEnum):
    """Why the engine stopped sampling."""

    STOP = "stop"
    LENGTH = "length"


class RunState(StrEnum):
    """Whether there is work."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


class Disposition(StrEnum):
    """What became of a submitted group."""

    KEPT = "kept"
    ALL_CORRECT = "all_correct"
    ALL_WRONG = "all_wrong"
    FAILED = "failed"
    DUPLICATE = "duplicate"
    EXPIRED = "expired"
    EVALUATED = "evaluated"


@dataclass(frozen=True, kw_only=True, order=True)
class PolicyVersion:
    """One set of published weights. Example: `PolicyVersion(number=3, lineage="9f2c1a")`."""

    number: int
    """How often weights were published before; 0 is the base model."""
    lineage: str
    """New at every start of the trainer."""

    def __str__(self) -> str:
        return f"v{self.number}-{self.lineage}"


@dataclass(frozen=True, kw_only=True)
class PolicySpan:
    """Consecutive tokens sampled by one policy."""

    policy: PolicyVersion
    tokens: int


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The judgement on one rollout."""

    outcome: Outcome
    correct: bool | None
    """None when the rollout could not be judged."""
    reward: float | None
    """±1 (eq. 7) plus the soft overlong punishment (eq. 13); None with `correct`."""
    extracted: str | None = None
    """The answer that was compared, if one was found."""
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """One sampled output of a prompt."""

    token_ids: TokenIds
    """[tokens], the end-of-sequence token included when it was sampled."""
    logprobs: LogProbs
    """[tokens], natural log, of the temperature-scaled distribution it was sampled from."""
    finish_reason: FinishReason
    policy_spans: tuple[PolicySpan, ...]
    """Cover all tokens in order."""
    verdict: Verdict | None = None
    """None until the reward service has judged it."""

    @property
    def truncated(self) -> bool:
        return self.finish_reason is FinishReason.LENGTH


@dataclass(frozen=True, kw_only=True)
class Group:
    """The rollouts of one prompt."""

    group_id: str
    prompt_token_ids: TokenIds
    rollouts: tuple[Rollout, ...]

    @property
    def policy(self) -> PolicyVersion:
        """The oldest policy among the group's tokens: staleness counts from it."""
        return min(span.policy for rollout in self.rollouts for span in rollout.policy_spans)
