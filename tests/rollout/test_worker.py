"""The worker's loop against scripted neighbours: what is leased, loaded, submitted and returned."""

from __future__ import annotations

import logging

import grpc
import pytest

from dapod import wire
from dapod.config import ConfigError
from dapod.types import Outcome, RunState, Verdict
from services.rollout.engine import EngineFailed
from tests.rollout.conftest import Pod, eventually
from tests.rollout.doubles import SHAPES, V0, V1, V1_AGAIN, publish


async def test_a_leased_prompt_is_sampled_scored_and_submitted(pod: Pod) -> None:
    pod.buffer.queue = ["g1"]
    pod.start()
    await eventually("the submission", lambda: "g1" in pod.buffer.submitted)
    request = pod.buffer.submitted["g1"]
    group = wire.group_from_proto(request.group)
    assert request.lease_id == "lease-g1"
    assert group.prompt_token_ids.tolist() == [1, 5, 9]
    assert [r.token_ids.tolist() for r in group.rollouts] == [[7, 2], [7, 2]]
    assert all(r.verdict is not None and r.verdict.correct for r in group.rollouts)
    assert group.policy == V0


async def test_the_first_policy_is_announced_before_it_is_loaded_and_loaded_before_any_sample(
    pod: Pod,
) -> None:
    pod.buffer.queue = ["g1"]
    pod.start()
    await eventually("the submission", lambda: "g1" in pod.buffer.submitted)
    assert pod.events[:3] == [f"loading {V0}", f"load {V0}", f"sample g1 with {V0}"]


async def test_no_more_prompts_are_leased_than_there_are_slots(pod: Pod) -> None:
    pod.engine.go.clear()
    pod.buffer.queue = ["g1", "g2", "g3"]
    pod.start()
    await eventually("two groups in flight", lambda: pod.engine.sampling == 2)
    assert pod.buffer.leased == ["g1", "g2"]
    pod.engine.go.set()
    await eventually("the third", lambda: "g3" in pod.buffer.submitted)


async def test_scoring_one_group_does_not_hold_up_sampling_another(pod: Pod) -> None:
    pod.reward.go.clear()
    pod.buffer.queue = ["g1", "g2"]
    pod.start()
    await eventually("both to be scored at once", lambda: pod.reward.asked == 2)
    pod.reward.go.set()
    await eventually("both submissions", lambda: len(pod.buffer.submitted) == 2)


async def test_a_newer_policy_is_loaded_after_running_groups_finished_and_nothing_new_began(
    pod: Pod,
) -> None:
    pod.engine.go.clear()
    pod.buffer.lease_seconds = 0.3
    pod.buffer.queue = ["g1"]
    pod.start()
    await eventually("g1 in flight", lambda: pod.engine.sampling == 1)
    publish(pod.store, V1, SHAPES)
    pod.buffer.policy, pod.buffer.queue = V1, []
    await eventually("the announcement", lambda: f"loading {V1}" in pod.events)
    pod.buffer.queue = ["g2"]
    pod.engine.go.set()
    await eventually("g2", lambda: "g2" in pod.buffer.submitted)
    order = [e for e in pod.events if not e.startswith(f"loading {V0}")]
    wanted = [f"sample g1 with {V0}", f"loading {V1}", "submit g1", f"load {V1}"]
    assert [e for e in dict.fromkeys(order) if e in wanted] == wanted
    assert pod.events.index(f"load {V1}") < pod.events.index(f"sample g2 with {V1}")
    assert pod.value("policy_version") == 1


async def test_the_same_number_of_another_lineage_is_loaded_too(pod: Pod) -> None:
    publish(pod.store, V1, SHAPES)
    publish(pod.store, V1_AGAIN, SHAPES)
    pod.buffer.policy = V1
    pod.start()
    await eventually("v1", lambda: pod.engine.loaded == V1)
    pod.buffer.policy = V1_AGAIN
    await eventually("v1 of the new lineage", lambda: pod.engine.loaded == V1_AGAIN)


async def test_a_corrupt_policy_is_not_loaded_and_the_engine_goes_on_with_what_it_has(
    pod: Pod, caplog: pytest.LogCaptureFixture
) -> None:
    pod.start()
    await eventually("v0", lambda: pod.engine.loaded == V0)
    publish(pod.store, V1, SHAPES)
    file = pod.store.path(V1) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    pod.buffer.policy, pod.buffer.queue = V1, ["g1"]
    await eventually("g1", lambda: "g1" in pod.buffer.submitted)
    await eventually("the failure", lambda: pod.value("load_failures_total", where="files") == 1)
    await eventually("it is said", lambda: "cannot be loaded" in pod.health.state.activity)
    assert f"load {V1}" not in pod.events
    assert pod.engine.loaded == V0 and not pod.health.state.ready
    assert "model.norm.weight differs" in caplog.text


async def test_a_pruned_policy_is_left_alone_and_the_newer_one_is_loaded(pod: Pod) -> None:
    pod.buffer.policy = V1  # never published here
    pod.start()
    await eventually("the failure", lambda: pod.value("load_failures_total", where="files") == 1)
    assert pod.engine.loaded is None
    publish(pod.store, V1_AGAIN, SHAPES)
    pod.buffer.policy = V1_AGAIN
    await eventually("the newer policy", lambda: pod.engine.loaded == V1_AGAIN)
    await eventually("a clean bill", lambda: pod.health.state.ready)


async def test_a_load_that_fails_half_way_ends_the_process_and_nothing_is_sampled(pod: Pod) -> None:
    pod.engine.fail_load = True
    pod.buffer.queue = ["g1"]
    pod.start()
    assert pod.task is not None
    with pytest.raises(EngineFailed, match="half a policy"):
        await pod.task
    assert pod.value("load_failures_total", where="engine") == 1
    assert not [event for event in pod.events if event.startswith("sample")]


async def test_an_engine_that_dies_returns_its_leases_and_ends_the_process(pod: Pod) -> None:
    pod.engine.go.clear()
    pod.buffer.queue = ["g1", "g2"]
    pod.start()
    await eventually("two groups in flight", lambda: pod.engine.sampling == 2)
    pod.engine.dead = True
    pod.engine.go.set()
    assert pod.task is not None
    with pytest.raises(EngineFailed):
        await pod.task


async def test_the_keeper_renews_what_is_in_flight(pod: Pod) -> None:
    pod.engine.go.clear()
    pod.buffer.lease_seconds = 0.15
    pod.buffer.queue = ["g1"]
    pod.start()
    await eventually("two renewals", lambda: pod.buffer.renewed.count("lease-g1") >= 2)


async def test_a_lost_lease_aborts_its_request_and_frees_the_slot(
    pod: Pod, caplog: pytest.LogCaptureFixture
) -> None:
    pod.engine.go.clear()
    pod.buffer.lease_seconds = 0.15
    pod.buffer.queue, pod.buffer.lost = ["g1", "g2"], {"lease-g1"}
    pod.start()
    await eventually("the abort", lambda: "abort g1" in pod.events)
    await eventually("the count", lambda: pod.value("groups_total", disposition="lost") == 1)
    assert "abort g2" not in pod.events
    assert "group=g1" in caplog.text
    pod.engine.go.set()
    await eventually("g2", lambda: "g2" in pod.buffer.submitted)
    assert "g1" not in pod.buffer.submitted


async def test_a_lease_lost_after_sampling_is_submitted_all_the_same(pod: Pod) -> None:
    pod.reward.go.clear()
    pod.buffer.lease_seconds = 0.15
    pod.buffer.queue, pod.buffer.lost = ["g1"], {"lease-g1"}
    pod.start()
    await eventually("a renewal", lambda: "lease-g1" in pod.buffer.renewed)
    pod.reward.go.set()
    await eventually("the submission", lambda: "g1" in pod.buffer.submitted)


async def test_stopping_aborts_requests_and_returns_all_leases(pod: Pod) -> None:
    pod.engine.go.clear()
    pod.buffer.queue = ["g1", "g2"]
    pod.start()
    await eventually("two groups in flight", lambda: pod.engine.sampling == 2)
    await pod.stop()
    assert pod.buffer.returned == {"lease-g1": "the pod stops", "lease-g2": "the pod stops"}
    assert {"abort g1", "abort g2"} <= set(pod.events)
    assert pod.value("groups_in_flight") == 0


async def test_a_buffer_that_is_away_at_the_start_is_waited_for_visibly(pod: Pod) -> None:
    await pod.buffer_server.stop(0)
    pod.start()
    await eventually("the reason", lambda: "waiting for the buffer" in pod.health.state.activity)
    assert not pod.health.state.ready
    assert pod.value("idle_seconds_total", reason="buffer_away") >= 0
    await pod.serve_buffer()
    pod.buffer.queue = ["g1"]
    await eventually("the submission", lambda: "g1" in pod.buffer.submitted)
    await eventually("readiness", lambda: pod.health.state.ready)


async def test_a_buffer_that_goes_away_mid_run_loses_no_group(pod: Pod) -> None:
    pod.engine.go.clear()
    pod.buffer.queue = ["g1"]
    pod.start()
    await eventually("g1 in flight", lambda: pod.engine.sampling == 1)
    await pod.buffer_server.stop(0)
    pod.engine.go.set()
    await eventually("the reason", lambda: "waiting for the buffer" in pod.health.state.activity)
    await pod.serve_buffer()
    await eventually("the submission", lambda: "g1" in pod.buffer.submitted)


async def test_a_full_buffer_is_backpressure_and_the_group_is_submitted_later(pod: Pod) -> None:
    pod.buffer.submit_errors = [grpc.StatusCode.RESOURCE_EXHAUSTED] * 2
    pod.buffer.queue = ["g1"]
    pod.start()
    await eventually("the submission", lambda: "g1" in pod.buffer.submitted)
    assert not pod.buffer.returned


async def test_a_reward_service_that_is_away_is_waited_for_visibly(pod: Pod) -> None:
    pod.reward.error = grpc.StatusCode.UNAVAILABLE
    pod.buffer.queue = ["g1"]
    pod.start()
    await eventually("the reason", lambda: "the reward service" in pod.health.state.activity)
    pod.reward.error = None
    await eventually("the submission", lambda: "g1" in pod.buffer.submitted)


async def test_a_group_that_cannot_be_scored_goes_back_with_the_reason(
    pod: Pod, caplog: pytest.LogCaptureFixture
) -> None:
    pod.reward.error = grpc.StatusCode.INVALID_ARGUMENT
    pod.buffer.queue = ["g1"]
    pod.start()
    await eventually("the return", lambda: "lease-g1" in pod.buffer.returned)
    assert "INVALID_ARGUMENT: no verdict" in pod.buffer.returned["lease-g1"]
    assert "group=g1" in caplog.text
    assert pod.value("groups_total", disposition="returned") == 1


async def test_a_group_the_buffer_refuses_goes_back_and_the_pod_lives_on(pod: Pod) -> None:
    pod.buffer.submit_errors = [grpc.StatusCode.INVALID_ARGUMENT]
    pod.buffer.queue = ["g1", "g2"]
    pod.start()
    await eventually("one return", lambda: len(pod.buffer.returned) == 1)
    await eventually("one submission", lambda: len(pod.buffer.submitted) == 1)


async def test_verdicts_of_a_failed_verifier_pass_through_as_they_are(pod: Pod) -> None:
    pod.reward.verdict = Verdict(outcome=Outcome.KILLED, correct=None, reward=None)
    pod.buffer.queue = ["g1"]
    pod.start()
    await eventually("the submission", lambda: "g1" in pod.buffer.submitted)
    group = wire.group_from_proto(pod.buffer.submitted["g1"].group)
    assert [r.verdict and r.verdict.outcome for r in group.rollouts] == [Outcome.KILLED] * 2


async def test_a_refusal_is_shown_and_asked_about_again(pod: Pod) -> None:
    pod.buffer.refusal = "the trainer is behind"
    pod.start()
    await eventually("the reason", lambda: "the trainer is behind" in pod.health.state.activity)
    assert pod.health.state.ready
    pod.buffer.queue = ["g1"]
    await eventually("the submission", lambda: "g1" in pod.buffer.submitted)


async def test_without_a_policy_the_pod_waits_and_says_so(pod: Pod) -> None:
    pod.buffer.policy, pod.buffer.refusal = None, ""
    pod.start()
    await eventually("the reason", lambda: "no policy" in pod.health.state.activity)
    assert not pod.health.state.ready
    pod.buffer.policy = V0
    await eventually("v0", lambda: pod.engine.loaded == V0)
    assert pod.value("idle_seconds_total", reason="no_policy") > 0


async def test_when_the_run_has_finished_the_pod_drains_and_idles_with_heartbeats(pod: Pod) -> None:
    pod.buffer.lease_seconds = 0.15
    pod.engine.go.clear()
    pod.buffer.queue = ["g1"]
    pod.start()
    await eventually("g1 in flight", lambda: pod.engine.sampling == 1)
    pod.buffer.state, pod.buffer.refusal = RunState.FINISHED, "all 12 steps are trained"
    pod.engine.go.set()
    await eventually("the submission", lambda: "g1" in pod.buffer.submitted)
    await eventually("the words", lambda: "the run has finished" in pod.health.state.activity)
    heard = len(pod.buffer.workers)
    await eventually("heartbeats", lambda: len(pod.buffer.workers) > heard + 1)
    assert "all 12 steps are trained" in pod.health.state.activity
    assert pod.task is not None and not pod.task.done()


async def test_the_last_policy_of_a_finished_run_is_not_loaded(pod: Pod) -> None:
    pod.start()
    await eventually("v0", lambda: pod.engine.loaded == V0)
    publish(pod.store, V1, SHAPES)
    pod.buffer.state, pod.buffer.policy = RunState.FINISHED, V1
    await eventually("the words", lambda: "the run has finished" in pod.health.state.activity)
    assert f"load {V1}" not in pod.events


async def test_a_buffer_of_another_run_ends_the_process_with_one_sentence(pod: Pod) -> None:
    pod.buffer.lease_error = grpc.StatusCode.FAILED_PRECONDITION
    pod.start()
    assert pod.task is not None
    with pytest.raises(
        ConfigError, match="the buffer refuses this rollout: the run is another one"
    ):
        await pod.task


async def test_log_lines_about_a_group_carry_its_id(
    pod: Pod, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="dapod.rollout")
    pod.buffer.queue = ["g1"]
    pod.start()
    await eventually("the line", lambda: "group=g1 lease=lease-g1 kept" in caplog.text)


async def test_tokens_and_groups_are_counted(pod: Pod) -> None:
    pod.buffer.queue = ["g1"]
    pod.start()
    await eventually("the count", lambda: pod.value("groups_total", disposition="kept") == 1)
    assert pod.value("tokens_generated_total") == 4
    assert pod.value("response_tokens_count") == 2
    assert pod.value("engine_running") == 1
    assert pod.value("idle_seconds_total", reason="loading") > 0


async def test_a_problem_of_an_evaluation_is_carried_like_a_group_as_its_lease_says(
    pod: Pod,
) -> None:
    pod.buffer.queue, pod.buffer.evaluated = [f"{V0}-7"], {f"{V0}-7"}
    pod.start()
    await eventually("the submission", lambda: f"{V0}-7" in pod.buffer.submitted)
    request = pod.engine.requests[f"{V0}-7"]
    assert (request.rollouts, round(request.top_p, 6)) == (1, 0.7)
    group = wire.group_from_proto(pod.buffer.submitted[f"{V0}-7"].group)
    assert len(group.rollouts) == 1 and group.policy == V0
    await eventually("the count", lambda: pod.value("groups_total", disposition="evaluated") == 1)


async def test_a_pod_that_is_told_to_go_back_to_an_older_policy_goes_back(pod: Pod) -> None:
    publish(pod.store, V1, SHAPES)
    pod.buffer.policy = V1
    pod.start()
    await eventually("v1", lambda: pod.engine.loaded == V1)
    pod.buffer.policy, pod.buffer.queue = V0, [f"{V0}-7"]
    pod.buffer.evaluated = {f"{V0}-7"}
    await eventually("v0 again", lambda: f"load {V0}" in pod.events)
    pod.buffer.policy = V1
    await eventually("and forward", lambda: pod.events.count(f"load {V1}") == 2)


async def test_a_pod_changes_over_only_when_its_problems_are_done(pod: Pod) -> None:
    pod.engine.go.clear()
    pod.buffer.queue, pod.buffer.evaluated = [f"{V0}-7"], {f"{V0}-7"}
    pod.start()
    await eventually("the problem in flight", lambda: pod.engine.sampling == 1)
    publish(pod.store, V1, SHAPES)
    pod.buffer.policy, pod.buffer.lease_seconds = V1, 0.3
    pod.buffer.queue = []
    pod.engine.go.set()
    await eventually("v1", lambda: pod.engine.loaded == V1)
    assert pod.events.index(f"submit {V0}-7") < pod.events.index(f"load {V1}")
