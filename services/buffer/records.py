"""What the store is told and what it answers: plain records, neither Redis replies nor messages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dapod.types import Disposition, PolicyVersion, RunState


@dataclass(frozen=True, kw_only=True)
class WorkerSeen:
    """A rollout pod as it described itself."""

    worker_id: str
    loaded: PolicyVersion | None
    loading: PolicyVersion | None


@dataclass(frozen=True, kw_only=True)
class LeaseId:
    """One grant of one prompt: `<group id>:<attempt>`."""

    group_id: str
    attempt: int

    def __str__(self) -> str:
        return f"{self.group_id}:{self.attempt}"

    @classmethod
    def parse(cls, text: str) -> LeaseId | None:
        """None for what this buffer never granted."""
        group_id, _, attempt = text.rpartition(":")
        if not group_id or not attempt.isdecimal() or len(attempt) > 9:
            return None
        return cls(group_id=group_id, attempt=int(attempt))


@dataclass(frozen=True, kw_only=True)
class Grant:
    """The answer to a worker that asks for prompts."""

    leases: tuple[LeaseId, ...]
    state: RunState
    policy: PolicyVersion | None
    refusal: str
    """Why fewer were granted than asked for; empty when all were."""


@dataclass(frozen=True, kw_only=True)
class Submission:
    """A judged group on its way into the store."""

    lease: LeaseId
    disposition: Disposition
    """What it is: `kept` is informative."""
    keep: bool
    """Whether it goes into a batch; if not it is dropped."""
    policy: PolicyVersion
    payload: bytes
    sha256: str
    prompt_tokens: int
    response_tokens: tuple[int, ...]
    counts: Mapping[str, int]
    """What it adds to the sampling statistics."""
    reward_sum: float


@dataclass(frozen=True, kw_only=True)
class EvaluatedSubmission:
    """The judged answers to one problem of an evaluation on their way into the store."""

    lease: LeaseId
    policy: PolicyVersion
    payload: bytes
    """A serialised `EvaluatedProblem`."""


@dataclass(frozen=True, kw_only=True)
class EndedEvaluation:
    """An evaluation that has ended, with what came of it."""

    policy: PolicyVersion
    problems: int
    results: tuple[bytes, ...]
    """A serialised `EvaluatedProblem` of each problem that was done, in order; those that fit."""
    next_problem: int | None
    """To go on with; None when there are no more results."""
    dropped_because: str
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Evaluations:
    """The answer to a trainer that asks for results."""

    ended: EndedEvaluation | None
    """One that it has not named."""
    open: int
    waiting_for: str


@dataclass(frozen=True, kw_only=True)
class EvaluationCounts:
    """Where the problems of open evaluations are."""

    policy: PolicyVersion | None = None
    """Under evaluation."""
    problems: Mapping[str, int]
    """By place: queued, leased, done; and dropped since the run began."""
    pods: int = 0
    error: int = 0
    """Problems lost or doubled, recounted from the keys."""


@dataclass(frozen=True, kw_only=True)
class Planned:
    """One line of a plan."""

    group_id: str
    policy_number: int
    prompt_tokens: int
    response_tokens: tuple[int, ...]
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The batch of one step."""

    step: int
    groups: tuple[Planned, ...]
    digest: str
    new: bool
    """Whether it was cut by this very call."""


@dataclass(frozen=True, kw_only=True)
class NoPlan:
    """No batch yet, or never."""

    finished: bool
    reason: str


@dataclass(frozen=True, kw_only=True)
class Committed:
    """The answer to a commit."""

    state: RunState
    workers: tuple[WorkerSeen, ...]
    stats: Mapping[str, float]
    """Since the commit before."""
    pinned: tuple[PolicyVersion, ...]
    """Policies that are to be evaluated: not to be pruned."""


@dataclass(frozen=True, kw_only=True)
class Resumed:
    """The answer to a trainer that starts."""

    replay_steps: tuple[int, ...]
    dissolved_steps: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Everything the store holds, counted at one moment."""

    state: RunState
    end_reason: str
    policy: PolicyVersion | None
    checkpoint_step: int
    next_step: int
    epoch: int
    groups: Mapping[str, int]
    """By place: queued, leased, ready, batched, trained, dropped_all_correct, ..."""
    totals: Mapping[str, int]
    """Since the run began: leases_granted, kept, duplicate, stale, ..."""
    stats: Mapping[str, float]
    """Since the last commit."""
    conservation_error: int
    faults: tuple[str, ...]
    """The first few reasons for a conservation error, in words."""
    payload_bytes: int
    capacity: int
    workers: tuple[WorkerSeen, ...]
    evaluation: EvaluationCounts


@dataclass(frozen=True, kw_only=True)
class ServerInfo:
    """What Redis says of itself."""

    memory_bytes: int
    memory_limit_bytes: int
    """`maxmemory`; 0 when it has none."""
    append_only: bool
    append_only_ok: bool
    """Whether its last write and its last rewrite succeeded; true without one."""
    delayed_fsyncs: int
