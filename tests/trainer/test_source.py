"""The trainer's side of the buffer: chunks, checks, and waits that end."""

import threading

import pytest

from dapod.health import Health
from dapod.rpc import channel
from dapod.types import PolicyVersion
from dapod.v1.buffer_pb2_grpc import BufferServiceStub
from dapod.v1.types_pb2 import RunIdentity
from services.trainer.source import Source
from services.trainer.stopped import Stopped
from tests.trainer.doubles import ScriptedBuffer, make_group, make_plan, payload_of

GROUPS = [make_group(f"0-{i}", [2, 3], correct=[True, False]) for i in range(7)]
POLICY = PolicyVersion(number=0, lineage="0a1b2c3d")


def connect(buffer, *, stop=None, health=None):
    stub = BufferServiceStub(channel(buffer.address))
    identity = RunIdentity(run_id="tiny", config_digest="d")
    source = Source(stub, identity, health or Health(), stop or threading.Event())
    source.resume(POLICY, [])
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
        reply = connect(buffer, health=health).poll(0)
    assert not reply.HasField("plan")
    assert "finished: the script has ended" in health.state.activity
