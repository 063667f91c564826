"""RewardService through real gRPC on loopback, over a real pool."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from dapod import config as configuration
from dapod import wire
from dapod.key import MAX_KEY_CHARACTERS
from dapod.rpc import RpcServer, channel
from dapod.types import Outcome
from dapod.v1 import reward_pb2, reward_pb2_grpc
from services.reward.process import MAX_RESPONSE_CHARACTERS
from services.reward.server import RewardServicer

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.toml"


@pytest.fixture
def serve(make_pool, metrics):
    """Start a server over a new pool; returns (stub, server)."""
    started = []

    def start(*overrides, pool=None, **pool_settings):
        config = configuration.load(QUICKSTART, overrides)
        server = RpcServer(threads=4)
        pool = pool or make_pool(**pool_settings)
        servicer = RewardServicer(pool=pool, config=config, metrics=metrics)
        reward_pb2_grpc.add_RewardServiceServicer_to_server(servicer, server.grpc)
        connection = channel(f"127.0.0.1:{server.start('127.0.0.1', 0)}")
        started.append((server, connection))
        return reward_pb2_grpc.RewardServiceStub(connection), server

    yield start
    for server, connection in started:
        connection.close()
        server.stop(0)


@pytest.fixture
def value_of(registry):
    return lambda name: registry.get_sample_value(f"dapod_reward_{name}")


def request(verifier, *texts, answer="12", tokens=4):
    """A hostile verifier's bare name is made whole; "integer" is the service's own."""
    if verifier and verifier != "integer":
        verifier = f"python:hostile_verifiers:{verifier}"
    return reward_pb2.ScoreRequest(
        group_id="g1",
        verifier=verifier,
        answer=answer,
        responses=[reward_pb2.Response(text=text, tokens=tokens) for text in texts],
    )


def verdicts(reply):
    return [wire.verdict_from_proto(verdict) for verdict in reply.verdicts]


def refusal(stub, bad, timeout=30):
    with pytest.raises(grpc.RpcError) as caught:
        stub.Score(bad, timeout=timeout)
    return caught.value.code(), caught.value.details()


def test_verdicts_come_in_the_order_of_the_responses(serve):
    stub, _ = serve(workers=2, verifiers=["integer"])
    right, wrong, unparsed = verdicts(
        stub.Score(request("integer", "12.", "13", "twelve"), timeout=30)
    )
    assert (right.outcome, right.correct, right.reward) == (Outcome.CORRECT, True, 1.0)
    assert (wrong.outcome, wrong.correct, wrong.reward) == (Outcome.WRONG, False, -1.0)
    assert (unparsed.outcome, unparsed.correct, unparsed.reward) == (Outcome.UNPARSED, False, -1.0)
    assert (right.extracted, wrong.extracted, unparsed.extracted) == ("12", "13", None)
    assert right.seconds > 0


@pytest.mark.parametrize(
    ("verifier", "outcome"),
    [
        *(("hang", Outcome.TIMEOUT), ("hang_in_c", Outcome.TIMEOUT), ("hoard", Outcome.KILLED)),
        *(("leave", Outcome.KILLED), ("refuse", Outcome.ERROR), ("nonsense", Outcome.ERROR)),
    ],
)
def test_a_failed_verification_has_neither_correct_nor_reward(serve, verifier, outcome):
    deadline = 0.3 if "hang" in verifier else 20
    stub, _ = serve("algorithm.overlong_cache_tokens=8", deadline_seconds=deadline)
    reply = stub.Score(request(verifier, "12"), timeout=30)
    assert not reply.verdicts[0].HasField("correct")
    assert not reply.verdicts[0].HasField("reward")
    assert verdicts(reply)[0].outcome is outcome


@pytest.mark.parametrize(
    ("tokens", "penalty"), [(1, 0.0), (8, 0.0), (10, -0.25), (16, -1.0), (17, -1.0)]
)
def test_a_long_response_is_punished_softly_right_or_wrong(serve, tokens, penalty):
    """Eq. 13 with Lmax = 16 (the quickstart's) and Lcache = 8."""
    stub, _ = serve("algorithm.overlong_cache_tokens=8")
    right, wrong = verdicts(stub.Score(request("honest", "12", "13", tokens=tokens), timeout=30))
    assert (right.correct, right.reward) == (True, 1.0 + penalty)
    assert (wrong.correct, wrong.reward) == (False, -1.0 + penalty)


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (request("integr", "12"), "verifier: 'python:hostile_verifiers:integr' is not one of"),
        (request("", "12"), "verifier: '' is not one of"),
        (request("honest", "12", answer=" "), "answer: must not be empty"),
        (request("honest", "12", answer="1" * (MAX_KEY_CHARACTERS + 1)), "answer: over"),
        (request("honest"), "responses: 1 to 1024 wanted, got 0"),
        (request("honest", *["12"] * 1025), "responses: 1 to 1024 wanted, got 1025"),
        (request("honest", "12", tokens=0), "responses[0].tokens: must be at least 1"),
    ],
)
def test_a_bad_request_is_refused_with_the_field_named(serve, value_of, bad, said):
    stub, _ = serve()
    code, details = refusal(stub, bad)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert said in details
    assert value_of("wait_seconds_count") == 0  # no worker has seen it


def test_a_response_that_is_too_long_is_an_error_and_its_group_is_judged(serve, registry):
    stub, _ = serve()
    long = "x" * MAX_RESPONSE_CHARACTERS
    longest, longer, right = verdicts(
        stub.Score(request("honest", long, long + "x", "12"), timeout=30)
    )
    assert (longest.outcome, right.outcome) == (Outcome.WRONG, Outcome.CORRECT)
    assert (longer.outcome, longer.correct, longer.reward) == (Outcome.ERROR, None, None)
    labels = {"verifier": "python:hostile_verifiers:honest", "outcome": "error"}
    assert registry.get_sample_value("dapod_reward_verifications_total", labels) == 1


def test_text_that_is_no_unicode_refuses_no_group(serve):
    stub, _ = serve()
    odd, raised = verdicts(stub.Score(request("surrogate", "12", "raise"), timeout=30))
    assert (odd.outcome, odd.extracted) == (Outcome.CORRECT, "12?")
    assert raised.outcome is Outcome.ERROR


def test_empty_text_is_a_response_like_any_other(serve):
    stub, _ = serve(verifiers=["integer"])
    assert verdicts(stub.Score(request("integer", ""), timeout=30))[0].outcome is Outcome.UNPARSED


def test_a_call_ends_at_its_deadline_and_the_service_goes_on(serve, tmp_path, value_of, eventually):
    stub, _ = serve(workers=2, deadline_seconds=60)
    code, _ = refusal(stub, request("gate", "12", answer=str(tmp_path / "never")), timeout=0.5)
    assert code is grpc.StatusCode.DEADLINE_EXCEEDED
    eventually(lambda: value_of("calls_expired_total") == 1, "the server counts the expired call")
    assert verdicts(stub.Score(request("honest", "12"), timeout=30))[0].correct is True


def test_other_groups_are_scored_while_one_hangs(serve, tmp_path, value_of, eventually):
    stub, _ = serve(workers=2, deadline_seconds=60)
    opened = tmp_path / "open"
    hung = stub.Score.future(request("gate", "12", answer=str(opened)), timeout=60)
    eventually(lambda: value_of("workers_busy") == 1, "one worker hangs")
    for _ in range(5):
        reply = stub.Score(request("honest", *["12"] * 8), timeout=30)
        assert all(verdict.correct for verdict in reply.verdicts)
    assert not hung.done()
    opened.touch()
    assert verdicts(hung.result(30))[0].correct is True


def test_draining_lets_a_running_call_finish(serve, tmp_path, value_of, eventually):
    stub, server = serve(deadline_seconds=60)
    opened = tmp_path / "open"
    running = stub.Score.future(request("gate", "12", answer=str(opened)), timeout=60)
    eventually(lambda: value_of("workers_busy") == 1, "the call is under way")
    with ThreadPoolExecutor() as threads:
        stopping = threads.submit(server.stop, 30)
        eventually(
            lambda: refusal(stub, request("honest", "12"))[0] is grpc.StatusCode.UNAVAILABLE,
            "new calls are refused",
        )
        opened.touch()
        assert verdicts(running.result(30))[0].correct is True
        stopping.result(30)


def test_a_call_met_by_the_end_of_the_pool_is_told_to_come_again(
    serve, make_pool, value_of, eventually
):
    pool = make_pool(deadline_seconds=60)
    stub, _ = serve(pool=pool)
    running = stub.Score.future(request("hang", "12", "12"), timeout=60)
    eventually(lambda: value_of("workers_busy") == 1, "the call is under way")
    pool.__exit__()
    assert running.exception(30).code() is grpc.StatusCode.UNAVAILABLE
