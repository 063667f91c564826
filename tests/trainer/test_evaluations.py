"""evaluations.jsonl: its keys, and each policy once whatever crashes."""

import json
import threading

import pytest
from prometheus_client import CollectorRegistry

from dapod.health import Health
from dapod.rpc import channel
from dapod.types import Outcome, PolicyVersion, Verdict
from dapod.v1 import buffer_pb2 as pb
from dapod.v1.buffer_pb2_grpc import BufferServiceStub
from dapod.v1.types_pb2 import RunIdentity
from dapod.wire import policy_to_proto, verdict_to_proto
from services.trainer.evaluations import Evaluations, row
from services.trainer.metrics import TrainerMetrics
from services.trainer.source import Source
from tests.trainer.doubles import ScriptedBuffer
from tests.trainer.harness import make_config

KEYS = """
    step policy_version lineage problems problems_done samples avg_at_k avg_at_k_low avg_at_k_high
    pass_at_k pass_at_k_low pass_at_k_high maj_at_k maj_at_k_low maj_at_k_high truncated_ratio
    response_tokens_mean verifications_failed dropped_because seconds time_unix
"""


def verdict(correct, extracted=None):
    if correct is None:
        return Verdict(outcome=Outcome.TIMEOUT, correct=None, reward=None)
    outcome = Outcome.CORRECT if correct else Outcome.WRONG
    reward = 1.0 if correct else -1.0
    return Verdict(outcome=outcome, correct=correct, reward=reward, extracted=extracted)


def evaluation(number, *problems, of=None, lineage="l1", dropped=""):
    """Each problem is a list of correctness and what was extracted."""
    results = [
        pb.EvaluatedProblem(
            problem=i,
            verdicts=[verdict_to_proto(verdict(*answer)) for answer in answers],
            response_tokens=10 * len(answers),
            truncated=1,
        )
        for i, answers in enumerate(problems)
    ]
    return pb.Evaluation(
        policy=policy_to_proto(PolicyVersion(number=number, lineage=lineage)),
        problems=of or len(problems),
        results=results,
        dropped_because=dropped,
        seconds=12.5,
    )


RIGHT, WRONG, FAILED = (True, "4"), (False, "5"), (None, None)


def test_a_row_has_exactly_the_documented_keys_in_order():
    assert list(row(evaluation(0, [RIGHT, WRONG]), 2)) == KEYS.split()


def test_a_row_counts_over_problems_and_leaves_out_what_could_not_be_judged():
    values = row(evaluation(4, [RIGHT, RIGHT, WRONG, FAILED], [WRONG, WRONG, WRONG, WRONG]), 4)
    assert values["avg_at_k"] == pytest.approx((2 / 3 + 0) / 2)
    assert values["pass_at_k"] == 0.5 and values["maj_at_k"] == 0.5
    assert values["avg_at_k_low"] < values["avg_at_k"] < values["avg_at_k_high"]
    assert values["verifications_failed"] == 1
    assert (values["truncated_ratio"], values["response_tokens_mean"]) == (0.25, 10)
    assert (values["step"], values["policy_version"], values["lineage"]) == (4, 4, "l1")


def test_an_evaluation_that_was_dropped_says_why_and_means_over_nothing_are_null():
    values = row(evaluation(2, of=30, dropped="its time was over"), 4)
    assert values["dropped_because"] == "its time was over"
    assert (values["problems"], values["problems_done"]) == (30, 0)
    assert values["avg_at_k"] is None and values["truncated_ratio"] is None
    assert json.loads(json.dumps(values, allow_nan=False)) == values


@pytest.fixture
def buffer():
    with ScriptedBuffer([], {}) as buffer:
        yield buffer


@pytest.fixture
def start(buffer, tmp_path):
    """A trainer's start at a checkpoint."""

    def start(step):
        data = {"path": "p.jsonl", "verifier": "integer"}
        config = make_config(tmp_path, evaluation={"every_steps": 2, "samples": 2, "data": data})
        stub = BufferServiceStub(channel(buffer.address))
        source = Source(stub, RunIdentity(run_id="tiny"), Health(), threading.Event())
        metrics = TrainerMetrics(CollectorRegistry())
        log = Evaluations(config=config, run_dir=tmp_path, source=source, metrics=metrics)
        log.cut_back(step)
        return log

    return start


def written(tmp_path, name="evaluations.jsonl"):
    file = tmp_path / name
    lines = file.read_text().splitlines() if file.exists() else []
    return [(one["policy_version"], one["lineage"]) for one in map(json.loads, lines)]


def test_what_has_ended_is_written_once_and_what_is_open_is_told(buffer, start, tmp_path):
    log = start(0)
    buffer.evaluations = [evaluation(0, [RIGHT, WRONG]), evaluation(2, [RIGHT, RIGHT])]
    buffer.evaluating = "v4-l1: 3 of 9 problems evaluated"
    assert log.collect() == log.collect() == "v4-l1: 3 of 9 problems evaluated"
    assert written(tmp_path) == [(0, "l1"), (2, "l1")]


def test_results_that_come_in_pages_are_one_row(buffer, start, tmp_path):
    buffer.evaluations = [evaluation(0, *[[RIGHT, WRONG]] * 7, [WRONG, WRONG], of=9)]
    log = start(0)
    log.collect()
    (values,) = log._log.rows()
    assert (values["problems"], values["problems_done"], values["avg_at_k"]) == (9, 8, 7 / 16)


def test_results_that_are_superseded_between_two_pages_are_not_mixed(buffer, start, tmp_path):
    """Only another trainer's start does that: this one ends, and would be refused anyway."""
    buffer.evaluations = [evaluation(2, *[[RIGHT, WRONG]] * 7)]
    log = start(2)
    fetch = log._source._stub.FetchEvaluations

    def superseded_after(request, timeout):
        reply = fetch(request, timeout=timeout)
        buffer.evaluations = [evaluation(2, *[[RIGHT, RIGHT]] * 7, lineage="l2")]
        return reply

    log._source._stub.FetchEvaluations = superseded_after
    with pytest.raises(ValueError, match="the results of v2-l1 were freed while"):
        log.collect()
    assert not written(tmp_path)


def test_a_resume_keeps_the_rows_up_to_its_checkpoint_and_sets_the_others_aside(
    buffer, start, tmp_path
):
    buffer.evaluations = [evaluation(n, [RIGHT, WRONG]) for n in (0, 2, 4)]
    start(0).collect()
    log = start(2)
    assert [policy.number for policy in log.known] == [0, 2]
    buffer.evaluations.append(evaluation(4, [RIGHT, RIGHT], lineage="l2"))
    del buffer.evaluations[2]
    assert log.collect() == ""
    assert written(tmp_path) == [(0, "l1"), (2, "l1"), (4, "l2")]
    assert written(tmp_path, "evaluations.superseded.jsonl") == [(4, "l1")]


def test_the_last_evaluation_is_a_metric(buffer, tmp_path, start):
    log = start(0)
    buffer.evaluations = [evaluation(2, [RIGHT, WRONG])]
    log.collect()
    assert log._metrics.evaluation_ratio.labels("avg")._value.get() == 0.5
    assert log._metrics.evaluation_policy_version._value.get() == 2


def test_a_run_without_evaluations_asks_for_none(buffer, tmp_path):
    config = make_config(tmp_path)
    stub = BufferServiceStub(channel("127.0.0.1:1"))
    source = Source(stub, RunIdentity(run_id="tiny"), Health(), threading.Event())
    metrics = TrainerMetrics(CollectorRegistry())
    log = Evaluations(config=config, run_dir=tmp_path, source=source, metrics=metrics)
    assert log.collect() == "" and not written(tmp_path)
