"""What the service knows of an engine: load a verified policy, sample, say when it died.

    load ──► first time: start with its files; later: let requests finish, change weights in place
    sample ─► token ids in; token ids, log-probs, finish reason and policy of each token out

An engine knows nothing of leases, rewards or text templates. After `EngineFailed` it never
samples again: the process ends and its supervisor starts a new one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from dapod.types import PolicyVersion, Rollout, TokenIds
from services.rollout.policies import VerifiedPolicy


class EngineFailed(RuntimeError):
    """The engine died, or a load went wrong after its weights were touched."""


class EngineNotReady(RuntimeError):
    """No policy is loaded yet, or one is being loaded."""


class SamplingFailed(RuntimeError):
    """One request could not be answered; the engine lives on."""


class RequestRefused(SamplingFailed):
    """The request itself is at fault: too long, or not this model's token ids."""


@dataclass(frozen=True, kw_only=True)
class SamplingRequest:
    """One prompt to sample from."""

    request_id: str
    """Unique among live requests; the group id in training, so the engine's log lines name it."""
    prompt_token_ids: TokenIds
    rollouts: int
    temperature: float
    top_p: float
    max_response_tokens: int


@dataclass(frozen=True, kw_only=True)
class Output:
    """One rollout, not judged yet, with its text."""

    rollout: Rollout
    text: str
    """Without the prompt and without special tokens."""


class Engine(Protocol):
    """The seam between the worker and vLLM."""

    @property
    def loaded(self) -> PolicyVersion | None:
        """What it samples from; None before the first load."""

    @property
    def ready(self) -> bool:
        """Whether `sample` may be called now."""

    def check(self) -> None:
        """Raises `EngineFailed` when the engine is beyond use."""

    async def load(self, verified: VerifiedPolicy) -> None:
        """Samples from `verified` from now on; `EngineFailed` when it is left half-loaded.

        What is being sampled finishes first, so that one call of `sample` is of one policy.
        """

    async def sample(self, request: SamplingRequest) -> tuple[Output, ...]:
        """Cancelling it aborts the request. Raises the four errors above."""

    async def stop(self) -> None:
        """Ends the engine's processes."""
