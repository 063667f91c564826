"""RolloutService: the pod's engine for tools and debugging. Loopback only; training never calls it.

A call during a change-over is refused, not queued, so it cannot hold the engine's pause up.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import grpc

from dapod import rpc, wire
from dapod.config import RunConfig
from dapod.health import Health
from dapod.tls import Tls
from dapod.types import TokenIds
from dapod.v1 import rollout_pb2, rollout_pb2_grpc
from services.rollout.engine import (
    Engine,
    EngineFailed,
    EngineNotReady,
    RequestRefused,
    SamplingFailed,
    SamplingRequest,
)

LOOPBACK = "127.0.0.1"
"""Whatever the listen host of the service: who can call this can use the model."""
MAX_ROLLOUTS = 1024  # algorithm.group_size goes no higher

Reply = TypeVar("Reply")
Context = grpc.aio.ServicerContext[Any, Any]


def answering(handler: Callable[..., Awaitable[Reply]]) -> Callable[..., Awaitable[Reply]]:
    """The asyncio form of `dapod.rpc.answering`, with the engine's own refusals."""

    @functools.wraps(handler)
    async def answer(self: object, request: Any, context: Context) -> Reply:
        try:
            return await handler(self, request, context)
        except RequestRefused as error:
            code, message = grpc.StatusCode.INVALID_ARGUMENT, f"prompt_token_ids: {error}"
        except ValueError as error:
            code, message = grpc.StatusCode.INVALID_ARGUMENT, str(error)
        except (EngineNotReady, EngineFailed) as error:
            code, message = grpc.StatusCode.UNAVAILABLE, str(error)
        except SamplingFailed as error:
            code, message = grpc.StatusCode.INTERNAL, str(error)
        await context.abort(code, message)
        raise AssertionError("abort raises")

    return answer


class RolloutServicer(rollout_pb2_grpc.RolloutServiceServicer):
    def __init__(
        self,
        *,
        engine: Engine,
        config: RunConfig,
        worker_id: str,
        health: Health,
        groups_in_flight: Callable[[], int],
    ) -> None:
        self._engine = engine
        self._config = config
        self._worker_id = worker_id
        self._health = health
        self._groups_in_flight = groups_in_flight
        self._numbers = itertools.count()

    @answering
    async def Generate(
        self, request: rollout_pb2.GenerateRequest, context: Context
    ) -> rollout_pb2.GenerateResponse:
        outputs = await self._engine.sample(self._sampling(request))
        return rollout_pb2.GenerateResponse(
            rollouts=[wire.rollout_to_proto(output.rollout) for output in outputs],
            texts=[output.text for output in outputs],
        )

    @answering
    async def GetRolloutStatus(
        self, request: rollout_pb2.GetRolloutStatusRequest, context: Context
    ) -> rollout_pb2.GetRolloutStatusResponse:
        loaded = self._engine.loaded
        return rollout_pb2.GetRolloutStatusResponse(
            worker_id=self._worker_id,
            loaded=None if loaded is None else wire.policy_to_proto(loaded),
            activity=self._health.state.activity,
            groups_in_flight=self._groups_in_flight(),
        )

    def _sampling(self, request: rollout_pb2.GenerateRequest) -> SamplingRequest:
        prompt = wire.ids_from_bytes(request.prompt_token_ids, "prompt_token_ids")
        sampling = request.sampling
        self._check(prompt, sampling)
        return SamplingRequest(
            request_id=f"generate-{next(self._numbers)}",
            prompt_token_ids=prompt,
            rollouts=sampling.rollouts,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_response_tokens=sampling.max_response_tokens,
        )

    def _check(self, prompt: TokenIds, sampling: rollout_pb2.SamplingParameters) -> None:
        """Raises `ValueError` with the field at fault."""
        room = self._config.tokens_per_rollout - len(prompt)
        if room < 1:
            raise ValueError(
                f"prompt_token_ids: {len(prompt)} tokens leave no room for a response; prompt and "
                f"response have {self._config.tokens_per_rollout} in all"
            )
        if not 1 <= sampling.max_response_tokens <= room:
            raise ValueError(f"sampling.max_response_tokens: must be in 1..{room} with this prompt")
        if not 1 <= sampling.rollouts <= MAX_ROLLOUTS:
            raise ValueError(f"sampling.rollouts: must be in 1..{MAX_ROLLOUTS}")
        if not (math.isfinite(sampling.temperature) and 0 <= sampling.temperature <= 2):
            raise ValueError("sampling.temperature: must be in 0..2")
        if not 0 < sampling.top_p <= 1:
            raise ValueError("sampling.top_p: must be above 0 and at most 1")


async def start(
    servicer: RolloutServicer, port: int, tls: Tls | None = None
) -> tuple[grpc.aio.Server, int]:
    """Listens on loopback; returns the port too. A port in use is a `ConfigError`."""
    server = rpc.aio_server()
    rollout_pb2_grpc.add_RolloutServiceServicer_to_server(servicer, server)
    bound = rpc.bind(server, LOOPBACK, port, tls=tls)
    await server.start()
    return server, bound
