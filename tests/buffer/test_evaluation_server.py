"""Evaluations over real gRPC: what a lease carries, what is refused, what the trainer is given."""

import threading
from collections.abc import Iterator

import pytest
import redis

from dapod import wire
from dapod.health import Health
from dapod.types import PolicyVersion
from dapod.v1 import buffer_pb2
from services.trainer.source import Source
from tests.buffer.evaluating import EvaluatedWorld
from tests.buffer.test_server import V0, Service, refusal, serve
from tests.buffer.world import make_group


@pytest.fixture
def service(client: redis.Redis) -> Iterator[Service]:
    world = EvaluatedWorld(client, samples=3, temperature=0.5, top_p=0.75, max_response_tokens=2)
    for service in serve(world):
        service.resume(V0, [])
        yield service


def answers(service: Service, lease: buffer_pb2.Lease, correct: list[bool | None]):
    row = int(lease.group_id.rpartition("-")[2])
    prompt = service.world.problems.get(row)
    return make_group(lease.group_id, prompt, V0, correct)


def submit(service: Service, lease: buffer_pb2.Lease, correct: list[bool | None]) -> int:
    request = service.submission(lease, answers(service, lease, correct))
    return service.stub.SubmitGroup(request, timeout=10).disposition


def fetch(
    service: Service, *known: PolicyVersion, first: int = 0
) -> buffer_pb2.FetchEvaluationsResponse:
    request = buffer_pb2.FetchEvaluationsRequest(
        run=service.run, evaluated=map(wire.policy_to_proto, known), first_problem=first
    )
    return service.stub.FetchEvaluations(request, timeout=10)


def test_a_lease_carries_what_the_evaluation_asks_for(service: Service) -> None:
    lease = service.lease(1).leases[0]
    assert lease.purpose == buffer_pb2.PURPOSE_EVALUATE
    assert (lease.group_id, lease.answer, lease.verifier) == ("v0-first-0", "0", "integer")
    sampling = lease.sampling
    assert (sampling.rollouts, sampling.max_response_tokens) == (3, 2)
    assert (sampling.temperature, sampling.top_p) == (0.5, 0.75)


def test_results_go_all_the_way_to_the_trainer(service: Service) -> None:
    for lease in service.lease(5).leases:
        assert submit(service, lease, [True, False, None]) == buffer_pb2.DISPOSITION_EVALUATED
    found = fetch(service)
    assert found.open == 0 and found.waiting_for == ""
    assert wire.policy_from_proto(found.evaluation.policy) == V0
    assert [result.problem for result in found.evaluation.results] == list(range(5))
    result = found.evaluation.results[0]
    verdicts = [wire.verdict_from_proto(verdict).correct for verdict in result.verdicts]
    assert (verdicts, result.response_tokens) == ([True, False, None], 6)
    assert not fetch(service, V0).HasField("evaluation")


def test_results_beyond_one_message_come_in_pages(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    for lease in service.lease(5).leases:
        submit(service, lease, [True, False, None])
    whole = fetch(service)
    limit = sum(result.ByteSize() for result in whole.evaluation.results[:3])
    monkeypatch.setattr("services.buffer.server.MAX_FETCH_BYTES", limit)
    first = fetch(service)
    assert [result.problem for result in first.evaluation.results] == [0, 1, 2]
    assert (first.next_problem, whole.HasField("next_problem")) == (3, False)
    last = fetch(service, first=3)
    assert not last.HasField("next_problem")
    assert first.evaluation.policy == last.evaluation.policy == whole.evaluation.policy
    results = [*first.evaluation.results, *last.evaluation.results]
    assert results == list(whole.evaluation.results)
    assert fetch(service, first=3) == last, "until it is named, it may be asked for again"
    assert not fetch(service, V0).HasField("evaluation")


def test_the_trainer_puts_the_pages_together(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    for lease in service.lease(5).leases:
        submit(service, lease, [True, False, None])
    source = Source(service.stub, service.run, Health(), threading.Event())
    whole = source.evaluations([])
    monkeypatch.setattr("services.buffer.server.MAX_FETCH_BYTES", 1)
    assert source.evaluations([]).evaluation == whole.evaluation
    assert len(whole.evaluation.results) == 5
    assert not source.evaluations([V0]).HasField("evaluation")


def test_status_counts_an_evaluation_apart(service: Service) -> None:
    leases = service.lease(2).leases
    submit(service, leases[0], [True, True, True])
    status = service.status()
    assert (status.groups_leased, status.sampling.rollouts, status.conservation_error) == (0, 0, 0)
    counted = status.evaluation
    assert wire.policy_from_proto(counted.policy) == V0
    assert (counted.problems_queued, counted.problems_leased, counted.problems_done) == (3, 1, 1)
    assert (counted.pods, counted.conservation_error) == (1, 0)


@pytest.mark.parametrize(
    ("correct", "says"),
    [
        ([True, False], "group.rollouts: 2, but evaluation.samples is 3"),
        ([], "group.rollouts: must not be empty"),
    ],
)
def test_another_number_of_answers_is_refused(
    service: Service, correct: list[bool | None], says: str
) -> None:
    lease = service.lease(1).leases[0]
    code, sentence = refusal(lambda: submit(service, lease, correct))
    assert (code, sentence) == ("INVALID_ARGUMENT", says)


def test_an_answer_that_is_too_long_or_to_another_problem_is_refused(service: Service) -> None:
    one, other = service.lease(2).leases
    group = make_group(one.group_id, service.world.problems.get(0), V0, [True] * 3, tokens=3)
    code, sentence = refusal(
        lambda: service.stub.SubmitGroup(service.submission(one, group), timeout=10)
    )
    assert code == "INVALID_ARGUMENT" and "3 tokens, more than the longest response" in sentence
    group = answers(service, other, [True] * 3)
    code, sentence = refusal(
        lambda: service.stub.SubmitGroup(service.submission(one, group), timeout=10)
    )
    assert code == "INVALID_ARGUMENT" and sentence.startswith("group.group_id")


def test_a_problem_that_is_not_in_the_data_is_not_found(service: Service) -> None:
    lease = service.lease(1).leases[0]
    group = answers(service, lease, [True] * 3)
    lease.lease_id, lease.group_id = "v0-first-99:1", "v0-first-99"
    assert (
        refusal(lambda: service.stub.SubmitGroup(service.submission(lease, group), timeout=10))[0]
        == "NOT_FOUND"
    )
