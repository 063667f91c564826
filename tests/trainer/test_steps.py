"""steps.jsonl: its keys, and each step once whatever crashes."""

import json

import pytest

from dapod.v1.buffer_pb2 import SamplingStats
from services.trainer.steps import StepLog, StepSeconds, TrainedStep, row
from tests.trainer.doubles import make_group, make_plan

KEYS = [
    "step",
    "policy_version",
    "accuracy",
    "reward_mean",
    "response_tokens_mean",
    "truncated_ratio",
    "entropy_nats",
    "clip_fraction_low",
    "clip_fraction_high",
    "grad_norm",
    "loss",
    "learning_rate",
    "mismatch_kl_nats",
    "reference_kl_nats",
    "groups_leased",
    "groups_kept",
    "groups_all_correct",
    "groups_all_wrong",
    "groups_stale",
    "groups_failed",
    "tokens_generated",
    "tokens_trained",
    "staleness_mean",
    "staleness_max",
    "seconds_wait",
    "seconds_train",
    "seconds_publish",
    "seconds_evaluate",
    "seconds_total",
    "time_unix",
]

TRAINED = TrainedStep(
    entropy_nats=1.0,
    clip_fraction_low=0.1,
    clip_fraction_high=0.2,
    grad_norm=3.0,
    loss=0.5,
    learning_rate=1e-3,
    mismatch_kl_nats=0.01,
    reference_kl_nats=None,
    tokens_trained=7,
    rollouts_dropped=0,
    updates=2,
)
SECONDS = StepSeconds(
    seconds_wait=1, seconds_train=2, seconds_publish=3, seconds_evaluate=0, seconds_total=7
)


def plan_of(step):
    groups = [make_group(f"{step}-{i}", [4, 6], correct=[True, False]) for i in range(2)]
    return make_plan(step, groups, 2)


def test_a_row_has_exactly_the_documented_keys_in_order():
    assert list(row(plan_of(3), SamplingStats(), TRAINED, SECONDS)) == KEYS


def test_means_are_over_everything_sampled_uniform_groups_included():
    sampled = SamplingStats(
        rollouts=20,
        rollouts_judged=16,
        rollouts_correct=4,
        rollouts_truncated=5,
        tokens_generated=200,
        reward_sum=-8.0,
    )
    values = row(plan_of(3), sampled, TRAINED, SECONDS)
    assert values["accuracy"] == 0.25
    assert values["reward_mean"] == -0.5
    assert values["response_tokens_mean"] == 10
    assert values["truncated_ratio"] == 0.25


def test_a_step_without_anything_sampled_has_no_accuracy():
    values = row(plan_of(3), SamplingStats(), TRAINED, SECONDS)
    assert values["accuracy"] is None
    assert json.loads(json.dumps(values, allow_nan=False)) == values


def test_staleness_counts_from_the_step_to_each_groups_oldest_policy():
    plan = plan_of(3)
    plan.groups[0].policy_number, plan.groups[1].policy_number = 2, 3
    values = row(plan, SamplingStats(), TRAINED, SECONDS)
    assert (values["staleness_mean"], values["staleness_max"]) == (0.5, 1)


@pytest.fixture
def log(tmp_path):
    log = StepLog(tmp_path)
    for step in range(6):
        log.append({"step": step})
    return log


def steps(file):
    return [json.loads(line)["step"] for line in file.read_text().splitlines()]


def test_a_resume_cuts_back_and_keeps_what_it_cut(log, tmp_path):
    assert log.cut_back(4) == 2
    assert steps(tmp_path / "steps.jsonl") == [0, 1, 2, 3]
    assert steps(tmp_path / "steps.superseded.jsonl") == [4, 5]


def test_a_second_resume_adds_to_the_superseded_rows(log, tmp_path):
    log.cut_back(4)
    log.append({"step": 4})
    log.cut_back(4)
    assert steps(tmp_path / "steps.superseded.jsonl") == [4, 5, 4]


def test_a_line_that_a_crash_cut_off_is_removed(log, tmp_path):
    with (tmp_path / "steps.jsonl").open("a") as stream:
        stream.write('{"step": 6, "acc')
    log.cut_back(6)
    log.append({"step": 6})
    assert steps(tmp_path / "steps.jsonl") == list(range(7))
    assert not (tmp_path / "steps.superseded.jsonl").exists()


def test_there_is_nothing_to_cut_in_a_fresh_run(tmp_path):
    assert StepLog(tmp_path).cut_back(0) == 0
