"""A rollout pod with doubles around it, on real gRPC over loopback."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import pytest
from prometheus_client import CollectorRegistry

from dapod import rpc
from dapod.health import Health
from dapod.policy_store import PolicyStore
from dapod.v1 import buffer_pb2_grpc, reward_pb2_grpc, types_pb2
from services.rollout.buffer_client import BufferClient
from services.rollout.group_work import GroupWork
from services.rollout.metrics import Idle, RolloutMetrics
from services.rollout.policies import PolicyReader
from services.rollout.reward_client import RewardClient
from services.rollout.worker import Worker
from tests.rollout.doubles import SHAPES, V0, BufferDouble, EngineDouble, RewardDouble, write_model
from tests.rollout.doubles import publish as publish_policy

SLOTS = 2


async def eventually(what: str, predicate: Callable[[], bool], seconds: float = 10.0) -> None:
    """Waits for a predicate; fails with what was waited for."""
    deadline = asyncio.get_running_loop().time() + seconds
    while not predicate():
        assert asyncio.get_running_loop().time() < deadline, f"waited {seconds} s for: {what}"
        await asyncio.sleep(0.005)


@dataclass(kw_only=True)
class Pod:
    """The worker under test and everything around it."""

    worker: Worker
    engine: EngineDouble
    buffer: BufferDouble
    reward: RewardDouble
    store: PolicyStore
    health: Health
    registry: CollectorRegistry
    events: list[str]
    buffer_server: grpc.aio.Server
    buffer_port: int
    task: asyncio.Task[None] | None = field(default=None)

    def start(self) -> None:
        self.task = asyncio.create_task(self.worker.run())

    async def stop(self) -> None:
        """As SIGTERM does."""
        if self.task is not None:
            self.task.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await self.task

    async def serve_buffer(self) -> None:
        self.buffer_server = rpc.aio_server()
        buffer_pb2_grpc.add_BufferServiceServicer_to_server(self.buffer, self.buffer_server)
        rpc.bind(self.buffer_server, "127.0.0.1", self.buffer_port)
        await self.buffer_server.start()

    def value(self, name: str, **labels: str) -> float:
        """A metric's value now."""
        return self.registry.get_sample_value(f"dapod_rollout_{name}", labels) or 0.0


@pytest.fixture
async def pod(tmp_path: Path) -> AsyncIterator[Pod]:
    """A pod whose buffer names v0, which is published; not started."""
    events: list[str] = []
    buffer, reward, engine = BufferDouble(events), RewardDouble(), EngineDouble(events)
    buffer_server, reward_server = rpc.aio_server(), rpc.aio_server()
    buffer_pb2_grpc.add_BufferServiceServicer_to_server(buffer, buffer_server)
    reward_pb2_grpc.add_RewardServiceServicer_to_server(reward, reward_server)
    buffer_port = rpc.bind(buffer_server, "127.0.0.1", 0)
    reward_port = rpc.bind(reward_server, "127.0.0.1", 0)
    await buffer_server.start()
    await reward_server.start()

    write_model(tmp_path / "model", SHAPES)
    store = PolicyStore(tmp_path / "policies")
    publish_policy(store, V0, SHAPES)

    health, registry = Health(), CollectorRegistry()
    metrics = RolloutMetrics(registry)

    def buffer_away(reason: str) -> None:
        metrics.idle.because(Idle.BUFFER_AWAY)
        health.waiting(reason)

    async with (
        rpc.aio_channel(f"127.0.0.1:{buffer_port}") as to_buffer,
        rpc.aio_channel(f"127.0.0.1:{reward_port}") as to_reward,
    ):
        client = BufferClient(
            stub=buffer_pb2_grpc.BufferServiceStub(to_buffer),
            run=types_pb2.RunIdentity(run_id="run", config_digest="digest"),
            worker_id="pod-0",
            waiting=buffer_away,
        )
        scorer = RewardClient(
            stub=reward_pb2_grpc.RewardServiceStub(to_reward),
            call_seconds=5.0,
            waiting=health.waiting,
        )
        worker = Worker(
            slots=SLOTS,
            buffer=client,
            work=GroupWork(engine=engine, reward=scorer, buffer=client, metrics=metrics),
            engine=engine,
            policies=PolicyReader(store, tmp_path / "model"),
            health=health,
            metrics=metrics,
        )
        pod = Pod(
            worker=worker,
            engine=engine,
            buffer=buffer,
            reward=reward,
            store=store,
            health=health,
            registry=registry,
            events=events,
            buffer_server=buffer_server,
            buffer_port=buffer_port,
        )
        yield pod
        engine.go.set()
        reward.go.set()
        await pod.stop()
    await pod.buffer_server.stop(0)
    await reward_server.stop(0)
