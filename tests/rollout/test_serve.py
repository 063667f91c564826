"""A fixed policy behind RolloutService, over the engine double."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from dapod import config as configuration
from dapod import rpc, wire
from dapod.cli.ports import free_ports
from dapod.config import ConfigError, Model
from dapod.environment import Environment
from dapod.health import Health
from dapod.policy_store import PolicyStore
from dapod.service import Service
from dapod.v1 import rollout_pb2, rollout_pb2_grpc
from services.rollout import serve
from services.rollout.engine import EngineFailed
from tests.rollout.conftest import eventually
from tests.rollout.doubles import SHAPES, V0, EngineDouble, publish, write_model

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.toml"


def make_service(directory: Path) -> Service:
    config = configuration.load(QUICKSTART)
    return Service(
        name="rollout",
        config=config.model_copy(update={"model": Model(path=str(directory))}),
        environment=Environment(variables={"DAPOD_GRPC_PORT": str(free_ports(1)[0])}),
        health=Health(),
        registry=CollectorRegistry(),
        stop=threading.Event(),
        run_id="evaluation",
    )


@asynccontextmanager
async def serving(service: Service, engine: EngineDouble) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(serve.answer(service, engine))
    try:
        yield task
    finally:
        service.stop.set()
        await asyncio.wait([task], timeout=10)


async def test_a_model_is_loaded_and_answers_until_sigterm(tmp_path: Path) -> None:
    write_model(tmp_path, SHAPES)
    service, engine = make_service(tmp_path), EngineDouble([])
    async with serving(service, engine) as task:
        await eventually("it is ready", lambda: service.health.state.ready)
        assert service.health.state.activity == "answering with v0-base"
        async with rpc.aio_channel(f"127.0.0.1:{service.environment.grpc_port}") as channel:
            reply = await rollout_pb2_grpc.RolloutServiceStub(channel).Generate(
                rollout_pb2.GenerateRequest(
                    prompt_token_ids=wire.ids_to_bytes(np.array([1, 2], dtype=np.int32)),
                    sampling=rollout_pb2.SamplingParameters(
                        temperature=1.0, top_p=0.7, max_response_tokens=8, rollouts=3
                    ),
                ),
                timeout=10,
            )
        assert list(reply.texts) == ["12"] * 3
    assert task.done() and task.exception() is None


async def test_a_runs_policy_is_verified_and_goes_by_its_name(tmp_path: Path) -> None:
    store = PolicyStore(tmp_path)
    publish(store, V0, SHAPES)
    service, engine = make_service(store.path(V0)), EngineDouble([])
    async with serving(service, engine):
        await eventually("it is ready", lambda: service.health.state.ready)
        assert engine.loaded == V0


async def test_a_policy_that_differs_from_its_manifest_is_refused(tmp_path: Path) -> None:
    store = PolicyStore(tmp_path)
    publish(store, V0, SHAPES)
    file = store.path(V0) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")
    service, engine = make_service(store.path(V0)), EngineDouble([])
    with pytest.raises(ConfigError, match="differs from the manifest; choose another policy"):
        await serve.answer(service, engine)
    assert engine.events == [], "nothing was loaded"


async def test_a_dead_engine_ends_the_process(tmp_path: Path) -> None:
    write_model(tmp_path, SHAPES)
    service, engine = make_service(tmp_path), EngineDouble([])
    async with serving(service, engine) as task:
        await eventually("it is ready", lambda: service.health.state.ready)
        engine.dead = True
        await eventually("it has ended", task.done)
    with pytest.raises(EngineFailed):
        task.result()
