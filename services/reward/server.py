"""RewardService: a group's responses in, verdicts out, in order (one group's way, step 4).

It turns outcomes into rewards and knows nothing about processes. What the pool could not judge
stays without a verdict's correct and reward: never a quiet 0 or -1 (invariant 8).
"""

import math

import grpc

from dapod import algorithm, wire
from dapod.config import RunConfig
from dapod.key import MAX_KEY_CHARACTERS
from dapod.rpc import Refusal, answering
from dapod.types import Outcome, Verdict
from dapod.v1 import reward_pb2, reward_pb2_grpc
from services.reward.metrics import RewardMetrics
from services.reward.pool import PoolStopped, VerifierPool
from services.reward.process import Job, Verification

MAX_RESPONSES = 1024  # algorithm.group_size goes no higher
MAX_CALL_SECONDS = 600.0
"""For a caller that set no deadline."""


class RewardServicer(reward_pb2_grpc.RewardServiceServicer):
    def __init__(self, *, pool: VerifierPool, config: RunConfig, metrics: RewardMetrics) -> None:
        self._pool = pool
        self._max_response_tokens = config.sampling.max_response_tokens
        self._overlong_cache_tokens = config.algorithm.overlong_cache_tokens
        self._metrics = metrics

    @answering
    def Score(
        self, request: reward_pb2.ScoreRequest, context: grpc.ServicerContext
    ) -> reward_pb2.ScoreResponse:
        jobs = _jobs(request, self._pool.verifiers)
        verifications = self._verify(jobs, _seconds_left(context))
        verdicts = [
            self._verdict(verification, response.tokens)
            for verification, response in zip(verifications, request.responses, strict=True)
        ]
        return reward_pb2.ScoreResponse(verdicts=map(wire.verdict_to_proto, verdicts))

    def _verify(self, jobs: list[Job], seconds: float) -> list[Verification]:
        try:
            return self._pool.verify_all(jobs, seconds)
        except TimeoutError as error:
            self._metrics.calls_expired.inc()
            raise Refusal(grpc.StatusCode.DEADLINE_EXCEEDED, str(error)) from error
        except PoolStopped as error:
            raise Refusal(grpc.StatusCode.UNAVAILABLE, "the reward service is stopping") from error

    def _verdict(self, verification: Verification, tokens: int) -> Verdict:
        outcome = verification.outcome
        correct = outcome is Outcome.CORRECT if outcome.judged else None
        return Verdict(
            outcome=outcome,
            correct=correct,
            reward=None if correct is None else self._reward(correct, tokens),
            extracted=verification.extracted,
            seconds=verification.seconds,
        )

    def _reward(self, correct: bool, tokens: int) -> float:
        """Eq. 7, with the soft overlong punishment of eq. 13 added."""
        penalty = algorithm.overlong_penalty(
            tokens, self._max_response_tokens, self._overlong_cache_tokens
        )
        return algorithm.reward(correct, penalty)


def _jobs(request: reward_pb2.ScoreRequest, verifiers: tuple[str, ...]) -> list[Job]:
    """The request, checked; a ValueError names the field."""
    _check(request, verifiers)
    return [
        Job(
            verifier=request.verifier,
            response=response.text,
            answer=request.answer,
            group_id=request.group_id,
        )
        for response in request.responses
    ]


def _check(request: reward_pb2.ScoreRequest, verifiers: tuple[str, ...]) -> None:
    if request.verifier not in verifiers:
        known = ", ".join(verifiers)
        raise ValueError(f"verifier: {request.verifier!r} is not one of {known}")
    if not request.answer.strip():
        raise ValueError("answer: must not be empty")
    if len(request.answer) > MAX_KEY_CHARACTERS:
        raise ValueError(f"answer: over {MAX_KEY_CHARACTERS} characters")
    if not 1 <= len(request.responses) <= MAX_RESPONSES:
        raise ValueError(f"responses: 1 to {MAX_RESPONSES} wanted, got {len(request.responses)}")
    for i, response in enumerate(request.responses):
        if response.tokens < 1:
            raise ValueError(f"responses[{i}].tokens: must be at least 1")


def _seconds_left(context: grpc.ServicerContext) -> float:
    left = context.time_remaining()
    return MAX_CALL_SECONDS if left is None or math.isinf(left) else min(left, MAX_CALL_SECONDS)
