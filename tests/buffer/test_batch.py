"""Batches: the cut rule, the plan, dynamic sampling and its statistics, the end of a run."""

from collections.abc import Callable

import pytest
import redis

from dapod.ledger import plan_digest
from dapod.types import Disposition, RunState
from services.buffer.records import NoPlan
from services.buffer.store import Refused
from tests.buffer.world import World, make_config


def waiting(world: World, step: int) -> str:
    found = world.ask(step)
    assert isinstance(found, NoPlan) and not found.finished
    return found.reason


def test_a_batch_is_cut_by_version_and_lease_order_whatever_finished_first(world: World) -> None:
    leases = world.lease("a", 0, 4)
    for lease in reversed(leases):
        world.submit(lease)
    ids = [lease.group_id for lease in leases]
    assert [group.group_id for group in world.cut(0).groups] == ids[:2]
    world.commit(world.cut(0))
    assert [group.group_id for group in world.cut(1).groups] == ids[2:], "a surplus is kept"


def test_a_batch_asked_again_is_the_same_and_is_cut_once(world: World) -> None:
    world.sample(0, 4)
    plan = world.cut(0)
    assert plan.new
    again = world.cut(0)
    assert not again.new
    assert (again.groups, again.digest) == (plan.groups, plan.digest)
    assert world.conserved().groups["batched"] == 2


def test_the_digest_is_the_one_python_computes(world: World) -> None:
    world.sample(0, 2)
    plan = world.cut(0)
    pairs = [(group.group_id, group.sha256) for group in plan.groups]
    assert plan.digest == plan_digest(0, world.config.algorithm.prompts_per_update, pairs)


def test_a_plan_says_what_the_trainer_needs_to_cut_the_work(world: World) -> None:
    world.sample(0, 2)
    group = world.cut(0).groups[0]
    assert (group.policy_number, group.prompt_tokens, group.response_tokens) == (0, 3, (2, 2, 2, 2))


def test_the_reason_for_waiting_is_said_in_words(world: World) -> None:
    assert waiting(world, 0) == "0 of 2 informative groups; 0 leases open"
    first, *_ = world.lease("a", 0, 3)
    world.submit(first)
    assert waiting(world, 0) == "1 of 2 informative groups; 2 leases open, oldest v0"


def test_a_batch_waits_for_the_old_leases_that_would_become_stale(make_world) -> None:
    world = make_world(prompts_per_step=1)
    old, lease = world.lease("a", 0, 2)
    world.submit(lease)
    world.train(0)
    world.sample(1, 1)
    assert waiting(world, 1) == (
        "1 leases of v0 or older must end before this batch can be cut (1 are open)"
    )
    world.submit(old)
    assert world.cut(1).groups[0].group_id == old.group_id


def counterexample(world: World) -> list[int]:
    """S = 2, N = 1: three leases at v0, one done; a fourth, of v1, overtakes two of them."""
    a, b, c = world.lease("slow", 0, 3)
    world.submit(a)
    world.train(0)
    (d,) = world.lease("quick", 1, 1)
    world.submit(d)
    staleness, late = [], [b, c]
    for step in (1, 2, 3):
        while isinstance(found := world.ask(step), NoPlan):
            world.submit(late.pop(0))
        world.commit(found)
        staleness.append(step - found.groups[0].policy_number)
    return staleness


SIMPLE = """
local open_stale = up_to(OPEN, step - S)
if open_stale > 0 then return { 'waiting', 'the simple rule' } end
local w, excess = nil, nil
"""


def with_simple_rule(client: redis.Redis, world: World) -> World:
    """The same run under the rule "not while a lease with w < s + 1 - max_staleness is open"."""
    scripts = world.scripts._scripts
    exact = "local w, excess = first_overfull(step, N)\n"
    text = scripts["cut"].script
    text = text.decode() if isinstance(text, bytes) else text
    assert exact in text
    scripts["cut"] = client.register_script(text.replace(exact, SIMPLE))
    return world


def test_the_cut_rule_keeps_the_bound_where_the_simple_rule_breaks_it(
    client: redis.Redis, make_world: Callable[..., World]
) -> None:
    assert counterexample(make_world(max_staleness=2, prompts_per_step=1)) == [1, 2, 2]
    client.flushall()
    simple = with_simple_rule(client, make_world(max_staleness=2, prompts_per_step=1))
    assert counterexample(simple) == [0, 2, 3]
    assert simple.counts().totals["stale"] == 1, "the bug counter sees it"


def test_a_batch_of_another_lineage_is_refused(world: World) -> None:
    world.sample(0, 2)
    with pytest.raises(Refused, match="lineage other is not the current one"):
        world.store.next_batch(0, "other")


def test_a_step_out_of_order_is_refused(world: World) -> None:
    with pytest.raises(Refused, match="step 1 is out of order"):
        world.ask(1)


def test_dynamic_sampling_goes_by_correctness_never_by_reward(world: World) -> None:
    (lease,) = world.lease("a", 0, 1)
    submission = world.submission(lease, "all_correct", reward=-3.5)
    assert world.store.submit(submission) is Disposition.ALL_CORRECT
    assert world.counts().stats["reward_sum"] == -3.5


def test_without_dynamic_sampling_uniform_groups_are_trained_and_counted_as_before(
    make_world: Callable[..., World],
) -> None:
    world = make_world(dynamic_sampling=False)
    failed, correct, wrong = world.lease("a", 0, 3)
    assert world.submit(failed, "failed") is Disposition.FAILED
    assert waiting(world, 0) == "0 of 2 groups; 2 leases open, oldest v0"
    assert world.submit(wrong, "all_wrong") is Disposition.ALL_WRONG
    assert world.submit(correct, "all_correct") is Disposition.ALL_CORRECT
    assert world.submit(correct, "all_correct") is Disposition.ALL_CORRECT, "the same answer again"
    plan = world.cut(0)
    assert [group.group_id for group in plan.groups] == [correct.group_id, wrong.group_id]
    assert all(world.store.fetch([group.group_id], 10**6)[0] for group in plan.groups)
    stats = world.commit(plan).stats
    assert (stats["groups_all_correct"], stats["groups_all_wrong"]) == (1, 1)
    assert (stats["groups_kept"], stats["groups_failed"]) == (0, 1)
    assert world.conserved().groups["trained"] == 2


def test_without_dynamic_sampling_a_uniform_group_takes_a_slot_of_the_grant_rule(
    make_world: Callable[..., World],
) -> None:
    world = make_world(dynamic_sampling=False)
    leases = world.lease("a", 0, 5)
    assert len(leases) == 4, "(max_staleness + 1) · N"
    world.submit(leases[0], "all_wrong")
    assert world.lease("a", 0, 1) == []
    world.submit(leases[1], "failed")
    assert len(world.lease("a", 0, 1)) == 1


def test_statistics_run_from_commit_to_commit(world: World) -> None:
    for kind in ("all_correct", "all_wrong", "failed"):
        world.submit(world.lease("a", 0, 1)[0], kind)
    world.sample(0, 2)
    stats = world.commit(world.cut(0)).stats
    assert {name: stats[name] for name in stats if name.startswith("groups")} == {
        "groups_leased": 5,
        "groups_kept": 2,
        "groups_all_correct": 1,
        "groups_all_wrong": 1,
        "groups_failed": 1,
        "groups_stale": 0,
    }
    assert (stats["rollouts"], stats["rollouts_judged"], stats["rollouts_correct"]) == (20, 17, 9)
    assert world.counts().stats == {}


def test_a_step_committed_or_trained_again_keeps_its_statistics(world: World) -> None:
    world.sample(0, 2)
    plan = world.cut(0)
    first = world.commit(plan).stats
    world.sample(1, 2)
    assert world.commit(plan).stats == first
    world.resume(0, "second")
    assert world.commit(world.cut(0)).stats == first
    assert world.commit(world.cut(1)).stats["groups_kept"] == 2, "later ones are not lost"


def test_a_step_that_uses_up_its_leases_ends_the_run_with_the_shares(make_world) -> None:
    world = make_world(max_leases_per_step=5)
    for kind in ("all_correct", "all_correct", "all_correct", "all_wrong"):
        world.submit(world.lease("a", 0, 1)[0], kind)
    (last,) = world.lease("a", 0, 1)
    assert waiting(world, 0).startswith("0 of 2"), "the open lease may still give a batch"
    world.submit(last)
    found = world.ask(0)
    assert isinstance(found, NoPlan) and found.finished
    assert found.reason == (
        "step 0 used 5 leases without a batch: 60% of the finished groups were all correct, "
        "20% all wrong, 0% could not be judged"
    )
    grant = world.store.lease(world.worker("a", 0), 1)
    assert grant.state is RunState.FINISHED and grant.refusal == found.reason
    assert world.conserved().end_reason == found.reason


def test_the_allowance_counts_from_commit_to_commit_and_not_what_expired(make_world) -> None:
    world = make_world(max_leases_per_step=2, prompts_per_step=1)
    world.lease("a", 0, 2)
    world.clock.sleep(61)
    world.sample(0, 1)
    world.train(0)
    assert len(world.lease("a", 1, 3)) == 2


def test_a_late_submission_counts_in_the_allowance_again(make_world) -> None:
    world = make_world(max_leases_per_step=2, prompts_per_step=1)
    (late,) = world.lease("a", 0, 1)
    world.clock.sleep(61)
    assert world.submit(late, "all_wrong") is Disposition.ALL_WRONG
    assert len(world.lease("a", 0, 2)) == 1


def test_the_run_is_finished_after_its_steps_and_goes_on_when_they_are_raised(
    client: redis.Redis,
) -> None:
    world = World(client, config=make_config(run={"steps": 1}))
    world.resume(0)
    world.sample(0, 2)
    assert world.commit(world.cut(0)).state is RunState.FINISHED
    assert world.lease("a", 1, 1) == [] and world.refusal == "all 1 steps are trained"
    assert world.counts().end_reason == "all 1 steps are trained"
    longer = World(client, config=make_config(run={"steps": 2}))
    longer.lineage = world.lineage
    assert len(longer.lease("a", 1, 1)) == 1
