"""RolloutService over the engine double: what it samples and what it refuses."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
import pytest

from dapod import config as configuration
from dapod import rpc, wire
from dapod.health import Health
from dapod.tls import Tls
from dapod.v1 import rollout_pb2, rollout_pb2_grpc
from services.rollout import server
from services.rollout.policies import VerifiedPolicy
from tests.dapod.certificates import Authority
from tests.rollout.doubles import V0, EngineDouble

ROOT = Path(__file__).parents[2]


@dataclass(kw_only=True)
class Service:
    stub: rollout_pb2_grpc.RolloutServiceStub
    engine: EngineDouble
    health: Health

    async def load(self) -> None:
        await self.engine.load(VerifiedPolicy(policy=V0, directory=Path("v0")))

    async def refusal(self, request: rollout_pb2.GenerateRequest) -> tuple[grpc.StatusCode, str]:
        with pytest.raises(grpc.RpcError) as caught:
            await self.stub.Generate(request, timeout=10)
        return rpc.status(caught.value), caught.value.details()


@contextlib.asynccontextmanager
async def serving(tls: Tls | None = None) -> AsyncIterator[Service]:
    engine, health = EngineDouble([]), Health()
    servicer = server.RolloutServicer(
        engine=engine,
        config=configuration.load(ROOT / "configs" / "quickstart.toml"),
        worker_id="pod-0",
        health=health,
        groups_in_flight=lambda: 3,
    )
    listening, port = await server.start(servicer, 0, tls)
    async with rpc.aio_channel(f"127.0.0.1:{port}", tls) as channel:
        stub = rollout_pb2_grpc.RolloutServiceStub(channel)
        yield Service(stub=stub, engine=engine, health=health)
    await listening.stop(0)


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    async with serving() as service:
        yield service


def request(**changed: object) -> rollout_pb2.GenerateRequest:
    values = {"temperature": 1.0, "top_p": 1.0, "max_response_tokens": 16, "rollouts": 2, **changed}
    return rollout_pb2.GenerateRequest(
        prompt_token_ids=wire.ids_to_bytes(np.array([1, 2, 3], dtype=np.int32)),
        sampling=rollout_pb2.SamplingParameters(**values),
    )


async def test_token_ids_go_in_and_come_out(service: Service) -> None:
    await service.load()
    reply = await service.stub.Generate(request(), timeout=10)
    rollouts = [wire.rollout_from_proto(rollout) for rollout in reply.rollouts]
    assert [rollout.token_ids.tolist() for rollout in rollouts] == [[7, 2], [7, 2]]
    assert [span.policy for rollout in rollouts for span in rollout.policy_spans] == [V0, V0]
    assert list(reply.texts) == ["12", "12"]


async def test_with_a_certificate_it_answers_over_tls(tmp_path: Path) -> None:
    Authority().issue(tmp_path)
    async with serving(Tls(tmp_path)) as service:
        await service.load()
        reply = await service.stub.Generate(request(), timeout=10)
    assert list(reply.texts) == ["12", "12"]


async def test_without_a_policy_it_is_unavailable(service: Service) -> None:
    code, _ = await service.refusal(request())
    assert code is grpc.StatusCode.UNAVAILABLE


async def test_with_a_dead_engine_it_is_unavailable(service: Service) -> None:
    await service.load()
    service.engine.dead = True
    code, message = await service.refusal(request())
    assert code is grpc.StatusCode.UNAVAILABLE and "dead" in message


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"temperature": -1.0}, "sampling.temperature"),
        ({"temperature": float("nan")}, "sampling.temperature"),
        ({"top_p": 0.0}, "sampling.top_p"),
        ({"top_p": 1.5}, "sampling.top_p"),
        ({"rollouts": 0}, "sampling.rollouts"),
        ({"rollouts": 5000}, "sampling.rollouts"),
        ({"max_response_tokens": 0}, "sampling.max_response_tokens"),
        ({"max_response_tokens": 78}, "sampling.max_response_tokens"),
    ],
)
async def test_a_bad_field_is_named(
    service: Service, changed: dict[str, object], field: str
) -> None:
    await service.load()
    code, message = await service.refusal(request(**changed))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert message.startswith(f"{field}:")


@pytest.mark.parametrize("data", [b"", b"abc", b"\xff\xff\xff\xff", bytes(4 * 80)])
async def test_bad_prompt_bytes_are_named(service: Service, data: bytes) -> None:
    await service.load()
    bad = request()
    bad.prompt_token_ids = data
    code, message = await service.refusal(bad)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert message.startswith("prompt_token_ids:")


async def test_the_status_says_what_the_pod_does(service: Service) -> None:
    ask = rollout_pb2.GetRolloutStatusRequest()
    assert not (await service.stub.GetRolloutStatus(ask, timeout=10)).HasField("loaded")
    await service.load()
    service.health.doing("sampling 3 groups")
    reply = await service.stub.GetRolloutStatus(ask, timeout=10)
    assert wire.policy_from_proto(reply.loaded) == V0
    assert (reply.worker_id, reply.activity) == ("pod-0", "sampling 3 groups")
    assert reply.groups_in_flight == 3
