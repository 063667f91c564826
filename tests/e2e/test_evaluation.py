"""A run that evaluates its policy, with everything real: one pod, every second version."""

import re

import pytest

from tests.e2e.finished_run import ANSWERS, EVALUATED, GROUP_SIZE, PROBLEMS, Finished

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]


def test_version_0_every_second_one_and_the_last_are_evaluated_once(finished: Finished) -> None:
    assert [row["policy_version"] for row in finished.evaluations] == EVALUATED
    for row in finished.evaluations:
        assert (row["problems"], row["problems_done"], row["samples"]) == (
            PROBLEMS,
            PROBLEMS,
            ANSWERS,
        )
        assert row["dropped_because"] is None and row["verifications_failed"] == 0
        assert 0 <= row["avg_at_k_low"] <= row["avg_at_k"] <= row["avg_at_k_high"] <= 1
        assert row["avg_at_k"] <= row["pass_at_k"] and row["seconds"] > 0
        assert 1 <= row["response_tokens_mean"] <= 16


def test_no_step_counts_anything_of_an_evaluation(finished: Finished) -> None:
    log = (finished.run_dir / "logs" / "buffer.log").read_text()
    leased = re.findall(r"group=(\S+) leased as", log)
    training = [group for group in leased if not group.startswith("v")]
    assert len(leased) - len(training) == PROBLEMS * len(EVALUATED)
    assert sum(row["groups_leased"] for row in finished.rows) == len(training)
    for row in finished.rows:
        groups = ("groups_kept", "groups_all_correct", "groups_all_wrong", "groups_failed")
        assert row["tokens_generated"] <= sum(row[name] for name in groups) * GROUP_SIZE * 16


def test_the_time_that_the_only_pod_evaluated_is_shown(finished: Finished) -> None:
    seconds = [row["seconds_evaluate"] for row in finished.rows]
    assert seconds[0] > 0 and seconds[2] > 0
    assert all(row["seconds_evaluate"] <= row["seconds_total"] + 60 for row in finished.rows)
    assert sum(seconds) <= sum(row["seconds"] for row in finished.evaluations) + 1


def test_the_command_tells_each_evaluation_and_where_they_are(finished: Finished) -> None:
    told = re.findall(r"^evaluation v(\d+): ", finished.end.output, re.M)
    assert [int(version) for version in told] == EVALUATED
    assert str(finished.run_dir / "evaluations.jsonl") in finished.end.output
