"""One problem's way: its prompt to the engine, the texts to the verifiers, the verdicts back."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import grpc

from dapod import rpc, wire
from dapod.cli.evaluate.problems import Problem
from dapod.cli.evaluate.record import Answer, Answered
from dapod.config import EvalConfig
from dapod.rpc import Patience
from dapod.types import Rollout, Verdict
from dapod.v1 import reward_pb2, reward_pb2_grpc, rollout_pb2, rollout_pb2_grpc

SAMPLE_SECONDS = 24 * 3600.0
"""Deadline of one Generate; a process that is gone ends it at once."""
SCORE_SECONDS = 600.0
"""Deadline of one Score; the service gives no call more."""


class ProblemFailed(RuntimeError):
    """A service refused the problem; the message names it and says why."""


class Asker:
    """Asks engine and verifiers; any number of threads may use one.

    A service that is away is asked again for as long as `stop` is not set: whether it comes back
    is the supervisor's to say.
    """

    def __init__(
        self, config: EvalConfig, *, engine: str, reward: str, stop: threading.Event
    ) -> None:
        self._config = config
        self._stop = stop
        self._channels = [rpc.channel(engine), rpc.channel(reward)]
        self._engine = rollout_pb2_grpc.RolloutServiceStub(self._channels[0])
        self._reward = reward_pb2_grpc.RewardServiceStub(self._channels[1])

    def close(self) -> None:
        """Ends the calls that still run."""
        for channel in self._channels:
            channel.close()

    def ask(self, problem: Problem) -> Answered:
        """Raises `ProblemFailed`."""
        try:
            sampled = self._sample(problem)
            verdicts = self._score(problem, sampled)
        except grpc.RpcError as error:
            why = f"{rpc.status(error).name}: {error.details()}"
            raise ProblemFailed(f"problem {problem.number}: {why}") from error
        except ValueError as error:
            raise ProblemFailed(f"problem {problem.number}: {error}") from error
        pairs = zip(sampled, verdicts, strict=True)
        return Answered(
            problem=problem,
            answers=[
                Answer(
                    text=response.text,
                    tokens=len(response.rollout.token_ids),
                    finish_reason=response.rollout.finish_reason,
                    verdict=verdict,
                )
                for response, verdict in pairs
            ],
        )

    def _sample(self, problem: Problem) -> list[_Response]:
        prompt = wire.ids_to_bytes(problem.prompt_token_ids)
        sampling, patience = self._config.sampling, self._patience("engine", SAMPLE_SECONDS)
        responses: list[_Response] = []
        for count in _parts(self._config.evaluation.samples, self._config.answers_per_call):
            request = rollout_pb2.GenerateRequest(
                prompt_token_ids=prompt,
                sampling=rollout_pb2.SamplingParameters(
                    temperature=sampling.temperature,
                    top_p=sampling.top_p,
                    max_response_tokens=sampling.max_response_tokens,
                    rollouts=count,
                ),
            )
            reply = patience.call(self._engine.Generate, request)
            responses += [
                _Response(text=text, rollout=wire.rollout_from_proto(rollout, f"rollouts[{i}]"))
                for i, (text, rollout) in enumerate(zip(reply.texts, reply.rollouts, strict=True))
            ]
        return responses

    def _score(self, problem: Problem, responses: Sequence[_Response]) -> list[Verdict]:
        """In parts that the verifiers can judge within one call's time, whatever they meet."""
        patience = self._patience("reward service", SCORE_SECONDS)
        verdicts: list[Verdict] = []
        for count in _parts(len(responses), _scores_per_call(self._config)):
            part = responses[len(verdicts) : len(verdicts) + count]
            request = reward_pb2.ScoreRequest(
                group_id=f"problem-{problem.number}",
                verifier=self._config.data.verifier,
                answer=problem.answer,
                responses=[
                    reward_pb2.Response(text=r.text, tokens=len(r.rollout.token_ids)) for r in part
                ],
            )
            reply = patience.call(self._reward.Score, request)
            verdicts += [
                wire.verdict_from_proto(verdict, f"verdicts[{i}]")
                for i, verdict in enumerate(reply.verdicts)
            ]
        return verdicts

    def _patience(self, who: str, seconds: float) -> Patience:
        return Patience(
            who=who,
            waiting=lambda _: None,  # the progress shows each service's own word
            timeout_seconds=seconds,
            give_up_seconds=math.inf,
            stop=self._stop,
        )


@dataclass(frozen=True, kw_only=True)
class _Response:
    text: str
    rollout: Rollout


def _parts(whole: int, most: int) -> Iterator[int]:
    """Example: 10 by at most 4 is 4, 4, 2."""
    for begin in range(0, whole, most):
        yield min(most, whole - begin)


def _scores_per_call(config: EvalConfig) -> int:
    """Each response may take its deadline twice, and the problems under way share the workers."""
    one = 2 * config.reward.deadline_seconds * config.rollout.groups_in_flight
    return max(1, int(0.9 * SCORE_SECONDS * config.reward.workers / one))
