"""The trainer's side of the buffer: chunks, checks, and waits that end."""

import threading
import time
from contextlib import suppress

import grpc
import pytest

from dapod.config import ConfigError
from dapod.health import Health
from dapod.heartbeat import Heartbeat
from dapod.rpc import channel
from dapod.types import PolicyVersion
from dapod.v1.buffer_pb2_grpc import BufferServiceStub
from dapod.v1.types_pb2 import RunIdentity
from services.trainer.phases import BEAT_SECONDS
from services.trainer.source import Source
from services.trainer.stopped import Stopped
from tests.trainer.doubles import ScriptedBuffer, make_group, make_plan, payload_of

GROUPS = [make_group(f"0-{i}", [2, 3], correct=[True, False]) for i in range(7)]
POLICY = PolicyVersion(number=0, lineage="0a1b2c3d")


def connect(buffer, *, stop=None, health=None, policy=POLICY):
    stub = BufferServiceStub(channel(buffer.address))
    identity = RunIdentity(run_id="tiny", config_digest="d")
    source = Source(stub, identity, health or Health(), stop or threading.Event())
    source.resume(policy, [])
    return source


def test_payloads_come_in_chunks_and_in_order():
    with ScriptedBuffer.of(GROUPS, prompts_per_step=7, prompts_per_update=7) as buffer:
        source = connect(buffer)
        plan = source.poll(0).plan
        assert [g.group_id for g in source.fetch(plan.groups)] == [g.group_id for g in GROUPS]


def test_a_payload_that_differs_from_the_plan_is_refused_by_name():
    plan = make_plan(0, GROUPS[:2], 2)
    payloads = {g.group_id: payload_of(g) for g in GROUPS[:2]}
    payloads["0-1"] = payload_of(GROUPS[2])
    with ScriptedBuffer([plan], payloads) as buffer:
        source = connect(buffer)
        with pytest.raises(ValueError, match="group=0-1: its payload differs"):
            list(source.fetch(source.poll(0).plan.groups))


def test_a_plan_whose_digest_does_not_match_is_refused():
    plan = make_plan(0, GROUPS[:2], 2)
    plan.digest = "0" * 40
    with ScriptedBuffer([plan], {}) as buffer, pytest.raises(ValueError, match="digest"):
        connect(buffer).poll(0)


def test_a_start_that_the_buffer_refuses_is_one_sentence_for_the_user():
    with ScriptedBuffer([], {}) as buffer:
        buffer.refuses_resume = "run.config_digest: this buffer serves 'a', not 'd'"
        with pytest.raises(ConfigError) as refused:
            connect(buffer)
    assert str(refused.value) == (
        "the buffer refuses this trainer: run.config_digest: this buffer serves 'a', not 'd'"
    )


def test_a_trainer_that_another_one_has_followed_is_no_mistake_of_the_users():
    """With exit status 2 it would end the Job of the other."""
    with ScriptedBuffer([], {}) as buffer:
        source = connect(buffer)
        connect(buffer, policy=PolicyVersion(number=0, lineage="ffffffff"))
        with pytest.raises(grpc.RpcError, match="is not the current one"):
            source.poll(0)


def test_waiting_says_for_what_and_stops_at_once_when_told():
    stop, health = threading.Event(), Health()
    with ScriptedBuffer.of(
        GROUPS, prompts_per_step=7, prompts_per_update=7, withhold=threading.Event()
    ) as buffer:
        source = connect(buffer, stop=stop, health=health)
        threading.Timer(0.3, stop.set).start()
        with pytest.raises(Stopped):
            source.poll(0)


def test_a_finished_run_says_so():
    health = Health()
    with ScriptedBuffer([], {}) as buffer:
        source = connect(buffer, health=health)
        reply = source.poll(0)
        source.heard(0, reply)
    assert not reply.HasField("plan")
    assert "finished: the script has ended" in health.state.activity


def test_a_trainer_that_waits_for_a_batch_beats_all_the_time():
    """For an hour and more on a clock that the test moves: a beat is due after 15 minutes."""
    now, stop = [0.0], threading.Event()
    health = Health(Heartbeat(lambda: now[0]))
    with ScriptedBuffer.of(
        GROUPS, prompts_per_step=7, prompts_per_update=7, withhold=threading.Event()
    ) as buffer:
        source = connect(buffer, stop=stop, health=health)
        waiting = threading.Thread(target=poll_until_stopped, args=(source,))
        waiting.start()
        try:
            health.heartbeat.beat(within=0)
            for _ in range(5):
                now[0] += BEAT_SECONDS + 1
                until_it_beats(health)
        finally:
            stop.set()
            waiting.join(timeout=10)


def test_a_trainer_without_a_buffer_beats_with_every_attempt():
    now, stop = [0.0], threading.Event()
    health = Health(Heartbeat(lambda: now[0]))
    stub = BufferServiceStub(channel("127.0.0.1:1"))
    source = Source(stub, RunIdentity(run_id="tiny", config_digest="d"), health, stop)
    waiting = threading.Thread(target=checkpoint_until_stopped, args=(source,))
    waiting.start()
    try:
        for _ in range(2):
            health.heartbeat.beat(within=0)
            now[0] += 1
            until_it_beats(health)
        assert health.state.activity.startswith("waiting for the buffer")
    finally:
        stop.set()
        waiting.join(timeout=40)


def poll_until_stopped(source):
    with suppress(Stopped):
        source.poll(0)


def checkpoint_until_stopped(source):
    with suppress(grpc.RpcError):
        source.checkpointed(4)


def until_it_beats(health):
    deadline = time.monotonic() + 20
    while health.heartbeat.overdue_seconds:
        assert time.monotonic() < deadline, "no beat"
        time.sleep(0.01)
