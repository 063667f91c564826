"""The reward service as a rollout sees it: one group's texts in, its verdicts out."""

from __future__ import annotations

import math
from collections.abc import Callable

from dapod import wire
from dapod.config import RunConfig
from dapod.rpc import Patience
from dapod.types import Verdict
from dapod.v1 import reward_pb2, reward_pb2_grpc
from services.rollout.buffer_client import LeasedPrompt
from services.rollout.engine import Output

GIVE_UP_SECONDS = 600.0
"""Then the lease goes back: another pod may reach another replica."""
MAX_CALL_SECONDS = 600.0


class RewardClient:
    """`waiting` is told what is being waited for."""

    def __init__(
        self,
        *,
        stub: reward_pb2_grpc.RewardServiceAsyncStub,
        call_seconds: float,
        waiting: Callable[[str], None],
    ) -> None:
        self._stub = stub
        self._patience = Patience(
            who="reward service",
            waiting=waiting,
            timeout_seconds=call_seconds,
            give_up_seconds=GIVE_UP_SECONDS,
        )

    async def score(self, prompt: LeasedPrompt, outputs: tuple[Output, ...]) -> list[Verdict]:
        """Raises `grpc.RpcError` when refused or given up, `ValueError` for a wrong answer."""
        request = reward_pb2.ScoreRequest(
            group_id=prompt.group_id,
            verifier=prompt.verifier,
            answer=prompt.answer,
            responses=[
                reward_pb2.Response(text=output.text, tokens=len(output.rollout.token_ids))
                for output in outputs
            ],
        )
        reply = await self._patience.acall(self._stub.Score, request)
        verdicts = [
            wire.verdict_from_proto(v, f"verdicts[{i}]") for i, v in enumerate(reply.verdicts)
        ]
        if len(verdicts) != len(outputs):
            raise ValueError(f"verdicts: {len(verdicts)} for {len(outputs)} responses")
        return verdicts


def call_seconds(config: RunConfig) -> float:
    """Deadline of one Score: each response may take its time twice, and all groups queue up."""
    samples = 1 if config.evaluation is None else config.evaluation.samples
    responses = max(config.algorithm.group_size, samples) * config.rollout.groups_in_flight
    rounds = math.ceil(responses / config.reward.workers)
    return min(MAX_CALL_SECONDS, 30.0 + 2 * rounds * config.reward.deadline_seconds)
