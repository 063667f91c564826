"""Starts the rollout service: `python -m services.rollout`, environment in `dapod.environment`.

One event loop holds the worker, the calls to buffer and reward, and the engine's client; the
engine itself runs in a process of its own. With DAPOD_GRPC_PORT set, RolloutService listens on
loopback. SIGTERM: no new prompts, running requests aborted, leases returned, engine ended, exit
0.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator
from pathlib import Path

from prometheus_client import REGISTRY

from dapod import rpc
from dapod.model_files import check_model
from dapod.policy_store import PolicyStore
from dapod.service import Service, main
from dapod.v1 import buffer_pb2_grpc, reward_pb2_grpc, types_pb2
from services.rollout import server, settings
from services.rollout.buffer_client import BufferClient
from services.rollout.group_work import GroupWork
from services.rollout.metrics import Idle, RolloutMetrics
from services.rollout.policies import PolicyReader
from services.rollout.process import as_event, make_engine
from services.rollout.reward_client import RewardClient, call_seconds
from services.rollout.vllm_engine import VllmEngine
from services.rollout.worker import Worker

log = logging.getLogger("dapod.rollout")


def serve(service: Service) -> None:
    check_model(service.config)
    settings.set_environment(os.environ, service.config, cpu=settings.is_cpu_build())
    asyncio.run(_serve(service))


async def _serve(service: Service) -> None:
    engine = make_engine(service)
    try:
        async with contextlib.AsyncExitStack() as stack:
            worker = await stack.enter_async_context(make_worker(service, engine))
            await stack.enter_async_context(debugging(service, engine, worker))
            importing = asyncio.create_task(engine.import_vllm())
            await _until_stopped(service, worker)
            importing.cancel()
    finally:
        await engine.stop()


@contextlib.asynccontextmanager
async def make_worker(service: Service, engine: VllmEngine) -> AsyncIterator[Worker]:
    """Wires the worker to its neighbours; the channels live as long as it does."""
    environment, config, health = service.environment, service.config, service.health
    metrics = RolloutMetrics(service.registry)

    def buffer_away(reason: str) -> None:
        metrics.idle.because(Idle.BUFFER_AWAY)
        health.waiting(reason)

    async with (
        rpc.aio_channel(environment.buffer_address, service.tls) as to_buffer,
        rpc.aio_channel(environment.reward_address, service.tls) as to_reward,
    ):
        buffer = BufferClient(
            stub=buffer_pb2_grpc.BufferServiceStub(to_buffer),
            run=types_pb2.RunIdentity(run_id=service.run_id, config_digest=service.config_digest),
            worker_id=environment.worker_id,
            waiting=buffer_away,
        )
        reward = RewardClient(
            stub=reward_pb2_grpc.RewardServiceStub(to_reward),
            call_seconds=call_seconds(config),
            waiting=health.waiting,
        )
        yield Worker(
            slots=config.rollout.groups_in_flight,
            buffer=buffer,
            work=GroupWork(engine=engine, reward=reward, buffer=buffer, metrics=metrics),
            engine=engine,
            policies=PolicyReader(PolicyStore(environment.policy_dir), Path(config.model.path)),
            health=health,
            metrics=metrics,
        )


@contextlib.asynccontextmanager
async def debugging(service: Service, engine: VllmEngine, worker: Worker) -> AsyncIterator[None]:
    """RolloutService, if a port was given for it."""
    port = service.environment.optional_grpc_port
    if port is None:
        yield
        return
    servicer = server.RolloutServicer(
        engine=engine,
        config=service.config,
        worker_id=service.environment.worker_id,
        health=service.health,
        groups_in_flight=lambda: worker.groups_in_flight,
    )
    listening, _ = await server.start(servicer, port, service.tls)
    try:
        yield
    finally:
        await listening.stop(grace=1)


async def _until_stopped(service: Service, worker: Worker) -> None:
    """Runs the worker until SIGTERM or until it raises."""
    stopped = as_event(service.stop)
    running = asyncio.create_task(worker.run())
    stopping = asyncio.create_task(stopped.wait())
    await asyncio.wait({running, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if running.done():
        running.result()
        return
    service.health.waiting("stopping: returning leases")
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running


if __name__ == "__main__":
    main("rollout", serve, extra_registries=[REGISTRY])
