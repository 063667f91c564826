"""Deadlines, patience, refusals and caps, over real gRPC on loopback."""

import math
import threading

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from dapod import rpc
from dapod.config import ConfigError
from dapod.v1 import reward_pb2, reward_pb2_grpc


class Scripted(reward_pb2_grpc.RewardServiceServicer):
    """Answers each call with the next entry of the script: a reply, or an exception to raise."""

    def __init__(self, *script):
        self.script = list(script)

    @rpc.answering
    def Score(self, request, context):
        entry = self.script.pop(0)
        if isinstance(entry, Exception):
            raise entry
        return entry


@pytest.fixture
def serve():
    servers, channels = [], []

    def start(*script, port=0):
        server = rpc.RpcServer(threads=2)
        reward_pb2_grpc.add_RewardServiceServicer_to_server(Scripted(*script), server.grpc)
        port = server.start("127.0.0.1", port)
        servers.append(server)
        channel = rpc.channel(f"127.0.0.1:{port}")
        channels.append(channel)
        return port, channel

    yield start
    for channel in channels:
        channel.close()
    for server in servers:
        server.stop(0)


def patience(waits, **more):
    return rpc.Patience(who="reward", waiting=waits.append, timeout_seconds=2, **more)


def test_a_refusal_and_a_value_error_become_statuses(serve):
    _, channel = serve(
        rpc.Refusal(grpc.StatusCode.FAILED_PRECONDITION, "another run"), ValueError("answer: empty")
    )
    stub = reward_pb2_grpc.RewardServiceStub(channel)
    with pytest.raises(grpc.RpcError) as caught:
        stub.Score(reward_pb2.ScoreRequest(), timeout=5)
    assert rpc.status(caught.value) is grpc.StatusCode.FAILED_PRECONDITION
    with pytest.raises(grpc.RpcError, match="answer: empty"):
        stub.Score(reward_pb2.ScoreRequest(), timeout=5)


def test_patience_repeats_while_the_other_side_is_away_and_says_so(serve):
    away = rpc.Refusal(grpc.StatusCode.UNAVAILABLE, "restarting")
    _, channel = serve(away, away, reward_pb2.ScoreResponse())
    waits = []
    stub = reward_pb2_grpc.RewardServiceStub(channel)
    patience(waits).call(stub.Score, reward_pb2.ScoreRequest())
    assert waits == ["waiting for the reward: unavailable"] * 2


def test_patience_without_an_end_lasts_through_an_outage_of_days(serve):
    _, channel = serve(rpc.Refusal(grpc.StatusCode.UNAVAILABLE, "gone"))
    with pytest.raises(grpc.RpcError) as caught:
        reward_pb2_grpc.RewardServiceStub(channel).Score(reward_pb2.ScoreRequest(), timeout=5)
    forever = patience([], give_up_seconds=math.inf)
    assert 1 <= forever._pause(caught.value, started=0.0, attempt=100_000) <= 2


def test_patience_ends_when_the_call_is_refused(serve):
    _, channel = serve(ValueError("answer: empty"))
    stub = reward_pb2_grpc.RewardServiceStub(channel)
    with pytest.raises(grpc.RpcError, match="answer: empty"):
        patience([]).call(stub.Score, reward_pb2.ScoreRequest())


def test_patience_ends_when_told_to_stop_or_out_of_time(serve):
    away = rpc.Refusal(grpc.StatusCode.UNAVAILABLE, "gone")
    _, channel = serve(away, away)
    stub = reward_pb2_grpc.RewardServiceStub(channel)
    stop = threading.Event()
    stop.set()
    with pytest.raises(grpc.RpcError, match="gone"):
        patience([], stop=stop).call(stub.Score, reward_pb2.ScoreRequest())
    with pytest.raises(grpc.RpcError, match="gone"):
        patience([], give_up_seconds=0.0).call(stub.Score, reward_pb2.ScoreRequest())


async def test_patience_in_an_event_loop_survives_a_server_that_starts_late(serve):
    port, _ = serve(
        rpc.Refusal(grpc.StatusCode.UNAVAILABLE, "restarting"), reward_pb2.ScoreResponse()
    )
    waits = []
    async with rpc.aio_channel(f"127.0.0.1:{port}") as channel:
        stub = reward_pb2_grpc.RewardServiceStub(channel)
        await patience(waits).acall(stub.Score, reward_pb2.ScoreRequest())
    assert waits == ["waiting for the reward: unavailable"]


def test_a_message_above_the_cap_is_refused_and_the_server_lives(serve):
    _, channel = serve(reward_pb2.ScoreResponse())
    stub = reward_pb2_grpc.RewardServiceStub(channel)
    huge = reward_pb2.ScoreRequest(answer="x" * (rpc.MAX_MESSAGE_BYTES + 1))
    with pytest.raises(grpc.RpcError) as caught:
        stub.Score(huge, timeout=10)
    assert rpc.status(caught.value) is grpc.StatusCode.RESOURCE_EXHAUSTED
    stub.Score(reward_pb2.ScoreRequest(), timeout=5)


def test_the_standard_health_service_answers(serve):
    _, channel = serve()
    reply = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
    assert reply.status == health_pb2.HealthCheckResponse.SERVING


def test_a_port_in_use_is_one_sentence(serve):
    port, _ = serve()
    with pytest.raises(ConfigError, match="DAPOD_GRPC_PORT"):
        serve(port=port)
