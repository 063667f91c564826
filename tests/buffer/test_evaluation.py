"""Evaluations: who takes them, what they leave alone, and how each ends once."""

from collections.abc import Callable

import pytest
import redis

from dapod.types import Disposition, PolicyVersion, RunState
from services.buffer.records import LeaseId, NoPlan
from services.buffer.store import UnknownLease
from tests.buffer.evaluating import (
    PROBLEMS,
    EvaluatedWorld,
    groups_in,
    make_problems,
    problems_in,
    rows,
)
from tests.buffer.world import restore, snapshot

V0 = PolicyVersion(number=0, lineage="first")


@pytest.fixture
def make(client: redis.Redis) -> Callable[..., EvaluatedWorld]:
    """A started run; keywords are keys of [evaluation]."""

    def make(**keys: object) -> EvaluatedWorld:
        world = EvaluatedWorld(client, **keys)
        world.resume(0)
        return world

    return make


@pytest.fixture
def world(make: Callable[..., EvaluatedWorld]) -> EvaluatedWorld:
    return make()


def test_version_0_is_evaluated_before_anything_is_sampled_for_training(
    world: EvaluatedWorld,
) -> None:
    grant = world.ask_for_work("a", 0, 3)
    assert [lease.group_id for lease in grant.leases] == [f"v0-first-{row}" for row in range(3)]
    grant = world.ask_for_work("a", 0, 3)
    assert len(problems_in(grant)) == 2 and len(groups_in(grant)) == 1, "free slots go to training"


def test_an_evaluation_is_one_result_for_every_problem(world: EvaluatedWorld) -> None:
    world.finish("a", 0)
    (ended,) = world.fetch()
    assert ended.policy == V0 and ended.dropped_because == ""
    assert (ended.problems, rows(ended)) == (PROBLEMS, list(range(PROBLEMS)))
    assert world.fetch() == [] and world.lease_problems("a", 0, 9) == [], "and it is done once"


def test_every_second_version_and_the_last_are_evaluated(client: redis.Redis) -> None:
    world = EvaluatedWorld(client, sections={"run": {"steps": 3}})
    world.resume(0)
    for step in range(3):
        if step % 2 == 0:
            world.finish("a", step)
        world.step(step)
    world.finish("a", 3)
    assert [ended.policy.number for ended in world.fetch()] == [0, 2, 3]


def test_training_counts_nothing_of_an_evaluation(world: EvaluatedWorld) -> None:
    leases = world.lease_problems("a", 0, 4)
    before = world.conserved()
    assert before.groups["leased"] == 0 and before.capacity == 4
    for lease in leases:
        world.submit_problem(lease)
    after = world.conserved()
    assert after.groups == before.groups and after.capacity == 4
    assert set(after.stats) == {"seconds_evaluate"}
    world.finish("a", 0, 1)
    assert world.step(0).groups and world.commit_stats["groups_leased"] == 2


def test_only_pods_with_the_pinned_version_take_part(make: Callable[..., EvaluatedWorld]) -> None:
    world = make(max_share=1.0)
    world.finish("a", 0)
    world.step(0)
    world.step(1)
    assert problems_in(world.ask_for_work("b", 1, 4)) == []
    assert problems_in(world.ask_for_work("b", None, 4)) == []
    assert len(problems_in(world.ask_for_work("a", 2, 4))) == 4


def test_at_most_the_share_of_the_pods_evaluates_and_the_others_train(
    make: Callable[..., EvaluatedWorld],
) -> None:
    world = make(max_share=0.5)
    for name in "abcd":
        world.ask_for_work(name, 0, 0)
    grants = {name: world.ask_for_work(name, 0, 1) for name in "abcd"}
    assert [len(problems_in(grants[name])) for name in "abcd"] == [1, 1, 0, 0]
    assert [len(groups_in(grants[name])) for name in "abcd"] == [0, 0, 1, 1]
    assert world.evaluation.pods == 2


def test_one_pod_alone_evaluates_whatever_the_share(make: Callable[..., EvaluatedWorld]) -> None:
    assert len(make(max_share=0.01).lease_problems("a", 0, 2)) == 2


def test_a_pod_keeps_the_pinned_version_until_nothing_of_it_is_queued(
    make: Callable[..., EvaluatedWorld],
) -> None:
    world = make(max_share=0.5)
    world.ask_for_work("b", 0, 0)
    held = world.lease_problems("a", 0, 1)
    world.sample(0, 2, name="b")
    world.train(0)
    grant = world.ask_for_work("a", 0, 2)
    assert str(grant.policy) == "v0-first" and len(problems_in(grant)) == 2
    assert str(world.ask_for_work("b", 0, 1).policy) == "v1-first", "the others change over"
    grant = world.ask_for_work("a", 0, 2)
    assert str(grant.policy) == "v1-first", "what it holds it finishes as any change-over does"
    for lease in held + problems_in(grant):
        assert world.submit_problem(lease) is Disposition.EVALUATED


def test_a_policy_under_evaluation_is_named_to_the_trainer_as_in_use(
    world: EvaluatedWorld,
) -> None:
    world.lease_problems("a", 0, 1)
    world.sample_as("b", 0, 2)
    committed = world.commit(world.cut(0))
    assert V0 in committed.pinned
    world.clock.sleep(61)  # the pod is gone, the evaluation is not
    world.sample_as("b", 1, 2)
    assert V0 in world.commit(world.cut(1)).pinned


def test_a_pod_that_dies_is_replaced_even_when_nobody_has_the_version_any_more(
    world: EvaluatedWorld,
) -> None:
    lost = world.lease_problems("a", 0, 2)
    world.sample_as("b", 0, 2)
    world.train(0)
    world.clock.sleep(61)
    assert world.evaluation.problems["queued"] == PROBLEMS
    grant = world.ask_for_work("b", 1, 1)
    assert str(grant.policy) == "v0-first", "told to go back to it"
    assert problems_in(grant) == [] and len(groups_in(grant)) == 1, "and not idle until it has"
    world.finish("b", 0)
    (ended,) = world.fetch()
    assert rows(ended) == list(range(PROBLEMS))
    assert world.submit_problem(lost[0]) is Disposition.EXPIRED
    assert str(world.ask_for_work("b", 0, 1).policy) == "v1-first"


def test_a_pod_that_was_called_back_and_never_came_loses_its_seat(world: EvaluatedWorld) -> None:
    world.lease_problems("a", 0, 2)
    world.sample_as("b", 0, 2)
    world.train(0)
    world.clock.sleep(61)
    assert str(world.ask_for_work("b", 1, 1).policy) == "v0-first"
    assert str(world.ask_for_work("c", 1, 1).policy) == "v1-first", "one seat, and it is taken"
    world.clock.sleep(121)
    assert str(world.ask_for_work("c", 1, 1).policy) == "v0-first"


def test_a_pod_that_waits_for_the_newest_version_is_not_called_back_for_it(
    world: EvaluatedWorld,
) -> None:
    world.finish("a", 0)
    world.step(0)
    world.step(1)
    grant = world.ask_for_work("b", 1, 1)
    assert str(grant.policy) == "v2-first" and world.evaluation.pods == 0
    assert len(world.lease_problems("a", 2, 1)) == 1, "the first that has it takes the seat"


def test_leases_of_problems_are_renewed_returned_and_expire_like_any_other(
    world: EvaluatedWorld,
) -> None:
    one, two = world.lease_problems("a", 0, 2)
    world.clock.sleep(50)
    assert world.store.renew(world.worker("a", 0), [one]) == []
    world.clock.sleep(20)
    assert world.store.renew(world.worker("a", 0), [one, two]) == [two]
    assert world.store.give_back([one]) == 1 and world.store.give_back([one]) == 0
    assert world.evaluation.problems == {"queued": PROBLEMS, "leased": 0, "done": 0, "dropped": 0}
    assert world.counts().totals["leases_returned"] == 1


def test_a_late_result_is_taken_while_nothing_has_replaced_it(world: EvaluatedWorld) -> None:
    late, later = world.lease_problems("a", 0, 2)
    world.clock.sleep(61)
    assert world.submit_problem(late) is Disposition.EVALUATED
    (again,) = world.lease_problems("b", 0, 1)
    assert again.group_id == later.group_id
    assert world.submit_problem(later) is Disposition.DUPLICATE
    assert world.submit_problem(again) is Disposition.EVALUATED
    assert world.evaluation.problems["done"] == 2


def test_a_result_submitted_again_gets_the_same_answer(world: EvaluatedWorld) -> None:
    leases = [world.lease_problems("a", 0, 1)[0] for _ in range(PROBLEMS)]
    for lease in leases:
        assert world.submit_problem(lease) is Disposition.EVALUATED
        assert world.submit_problem(lease) is Disposition.EVALUATED
    assert world.counts().totals["evaluations_complete"] == 1
    with pytest.raises(UnknownLease):
        world.policies[LeaseId(group_id="v0-first-0", attempt=9)] = V0
        world.submit_problem(LeaseId(group_id="v0-first-0", attempt=9))


def test_a_result_of_another_policy_is_refused(world: EvaluatedWorld) -> None:
    (lease,) = world.lease_problems("a", 0, 1)
    with pytest.raises(ValueError, match="the lease was granted for v0-first"):
        world.submit_problem(lease, PolicyVersion(number=1, lineage="first"))
    assert world.evaluation.problems["leased"] == 1


def test_an_evaluation_past_its_deadline_ends_with_what_is_done_and_says_so(
    make: Callable[..., EvaluatedWorld],
) -> None:
    world = make(deadline_seconds=600.0)
    world.clock.sleep(10_000)
    world.finish("a", 0, 2)
    (held,) = world.lease_problems("a", 0, 1)
    for _ in range(20):
        world.clock.sleep(31)
        world.store.renew(world.worker("a", 0), [held])
    (ended,) = world.fetch()
    assert ended.dropped_because == (
        "2 of 5 problems were done when evaluation.deadline_seconds = 600 had passed"
    )
    assert rows(ended) == [0, 1] and ended.seconds == 620
    assert world.submit_problem(held) is Disposition.EXPIRED
    assert world.store.renew(world.worker("a", 0), [held]) == [held]
    assert world.evaluation.problems == {"queued": 0, "leased": 0, "done": 0, "dropped": 3}
    assert world.step(0)


def test_of_those_that_wait_for_their_turn_only_the_last_is_evaluated(
    world: EvaluatedWorld,
) -> None:
    (held,) = world.lease_problems("slow", 0, 1)
    for step in range(6):
        world.sample_as("b", step, 2)
        world.train(step)
        world.store.renew(world.worker("slow", 0), [held])
    assert [(e.policy.number, e.dropped_because) for e in world.fetch()] == [
        (2, "v4 fell due before its turn came"),
        (4, "v6 fell due before its turn came"),
    ]
    world.finish("slow", 0, PROBLEMS - 1)
    world.submit_problem(held)
    world.finish("b", 6)
    assert [e.policy.number for e in world.fetch()] == [0, 6]


def test_the_run_is_finished_only_after_its_last_evaluation(client: redis.Redis) -> None:
    world = EvaluatedWorld(client, sections={"run": {"steps": 1}})
    world.resume(0)
    world.finish("a", 0)
    world.sample_as("a", 0, 2)
    assert world.commit(world.cut(0)).state is RunState.RUNNING
    grant = world.ask_for_work("a", 1, 1)
    assert grant.state is RunState.RUNNING and len(problems_in(grant)) == 1
    grant = world.ask_for_work("b", 1, 1)
    assert grant.refusal == "all 1 steps are trained; v1-first is being evaluated"
    found = world.ask_for_results()
    assert found.open == 1
    assert found.waiting_for == "v1-first: 0 of 5 problems evaluated, 1 being sampled by 1 pods"
    world.finish("a", 1, PROBLEMS - 1)
    world.clock.sleep(61)
    world.finish("b", 1, 1)
    assert world.ask_for_work("a", 1, 1).state is RunState.FINISHED
    assert world.ask_for_results(V0).open == 0


def test_without_a_pod_the_last_evaluation_ends_at_its_deadline_all_the_same(
    client: redis.Redis,
) -> None:
    world = EvaluatedWorld(client, sections={"run": {"steps": 1}})
    world.resume(0)
    world.finish("a", 0)
    world.step(0)
    world.counts()
    world.clock.sleep(3601)
    assert world.counts().state is RunState.FINISHED
    _, ended = world.fetch()
    assert ended.dropped_because.startswith("0 of 5 problems were done when")


def test_a_run_that_ends_early_evaluates_the_policy_it_ended_with(client: redis.Redis) -> None:
    world = EvaluatedWorld(client, sections={"algorithm": {"max_leases_per_step": 2}})
    world.resume(0)
    world.finish("a", 0)
    world.step(0)
    for lease in groups_in(world.ask_for_work("a", 1, 2)):
        world.submit(lease, "all_wrong")
    found = world.ask(1)
    assert isinstance(found, NoPlan) and found.finished
    assert world.counts().state is RunState.RUNNING
    world.finish("a", 1)
    assert world.counts().state is RunState.FINISHED


def test_a_resumed_trainer_supersedes_the_evaluations_after_its_checkpoint(
    world: EvaluatedWorld,
) -> None:
    world.finish("a", 0)
    world.fetch()
    for step in range(2):
        world.step(step)
    (old,) = world.lease_problems("a", 2, 1)
    world.finish("a", 2, PROBLEMS - 1)
    world.submit_problem(old)
    world.fetch()
    world.restart(0, "second")
    assert world.fetch() == [], "version 0 has its row"
    world.commit(world.cut(0))
    world.commit(world.cut(1))
    assert world.evaluation.policy == PolicyVersion(number=2, lineage="second")
    assert problems_in(world.ask_for_work("b", 2, 1, lineage="first")) == []
    world.finish("b", 2)
    assert [str(one.policy) for one in world.fetch()] == ["v2-second"]


def test_an_evaluation_under_way_of_a_version_that_stands_goes_on_after_a_resume(
    world: EvaluatedWorld,
) -> None:
    world.finish("a", 0, 2)
    held = world.lease_problems("a", 0, 2)
    world.restart(0, "second")
    assert world.evaluation.problems == {"queued": 1, "leased": 2, "done": 2, "dropped": 0}
    for lease in held:
        assert world.submit_problem(lease) is Disposition.EVALUATED
    grant = world.ask_for_work("a", 0, 1, lineage="first")
    assert str(grant.policy) == "v0-second", "the pod goes over when nothing is queued"
    (last,) = problems_in(grant)
    world.submit_problem(last)
    assert [str(one.policy) for one in world.fetch()] == ["v0-first"]


def test_what_the_trainer_has_on_disk_is_not_evaluated_again_when_redis_lost_it(
    world: EvaluatedWorld,
) -> None:
    before = snapshot(world.client)
    world.finish("a", 0)
    world.fetch()
    restore(world.client, before)
    assert world.evaluation.problems["queued"] == PROBLEMS
    assert world.fetch() == [] and world.evaluation.policy is None
    world.client.flushall()
    world.store.start(world.config.digest())
    world.restart(0, "second")
    assert world.evaluation.policy is None


def test_the_results_are_freed_when_the_trainer_has_them(world: EvaluatedWorld) -> None:
    world.finish("a", 0)
    world.fetch()
    assert not [key for key in world.client.scan_iter() if b":e:" in key]


def test_results_come_in_pages_which_may_be_asked_for_again_until_the_trainer_has_all(
    make: Callable[..., EvaluatedWorld],
) -> None:
    world = make(deadline_seconds=600.0)
    leases = world.lease_problems("a", 0, PROBLEMS)
    for lease in (leases[0], leases[2], leases[3]):
        world.submit_problem(lease)
    world.clock.sleep(601)
    for _ in range(2):
        first, second = world.ask_for_results().ended, world.ask_for_results(first=3).ended
        assert first is not None and second is not None
        assert (rows(first), first.next_problem) == ([0, 2], 3)
        assert (rows(second), second.next_problem) == ([3], None)
        assert first.policy == second.policy == V0
        assert first.dropped_because == second.dropped_because != ""
    assert world.ask_for_results(V0, first=3).ended is None


def test_a_result_that_is_longer_than_a_page_comes_alone(world: EvaluatedWorld) -> None:
    world.finish("a", 0)
    pages = [world.store.evaluations([], first, 1).ended for first in range(PROBLEMS)]
    assert [rows(page) for page in pages if page] == [[0], [1], [2], [3], [4]]


@pytest.mark.parametrize("problems", [make_problems(digest="other"), make_problems(3, "three")])
def test_an_evaluation_of_other_data_than_it_began_with_is_dropped(
    client: redis.Redis, world: EvaluatedWorld, problems: object
) -> None:
    world.lease_problems("a", 0, 1)
    changed = EvaluatedWorld(client, problems=problems, clock=world.clock)
    (ended,) = changed.fetch()
    assert ended.dropped_because == "its data or sampling was changed"
    assert changed.evaluation.policy is None


@pytest.mark.parametrize("name", ["", ":queued", ":leased", ":done"])
def test_deleting_a_key_of_an_evaluation_shows_and_ends_all_the_same(
    world: EvaluatedWorld, name: str
) -> None:
    world.finish("a", 0, 1)
    world.lease_problems("a", 0, 2)
    world.client.delete(world.key(f"e:v0-first{name}"))
    counts = world.store.counts()
    assert counts.evaluation.error > 0 or counts.evaluation.policy is None
    assert counts.conservation_error == 0, "groups of training are counted apart"
    world.clock.sleep(3601)
    assert world.evaluation.policy is None


def test_seconds_evaluate_is_the_time_a_pod_held_problems(world: EvaluatedWorld) -> None:
    first, second = world.lease_problems("a", 0, 2)
    world.clock.sleep(10)
    world.submit_problem(first)
    world.clock.sleep(10)
    world.submit_problem(second)
    world.clock.sleep(100)
    world.lease_problems("a", 0, 3)
    world.clock.sleep(5)
    world.sample_as("b", 0, 2)
    assert world.commit(world.cut(0)).stats["seconds_evaluate"] == 25
    world.clock.sleep(7)
    world.sample_as("b", 1, 2)
    assert world.commit(world.cut(1)).stats["seconds_evaluate"] == 7, "from commit to commit"
    assert world.commit_stats["groups_leased"] == 2


def test_a_run_without_an_evaluation_has_no_trace_of_one(client: redis.Redis) -> None:
    world = EvaluatedWorld(client)
    world.scripts._settings.pop("evaluation")
    world.resume(0)
    world.step(0)
    assert world.commit_stats["seconds_evaluate"] == 0
    assert not [key for key in world.client.scan_iter() if b":e" in key]
