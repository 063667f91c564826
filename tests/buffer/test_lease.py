"""Leases: the grant rule, expiry, renewal, return."""

from collections.abc import Callable

from dapod.types import Disposition, RunState
from services.buffer.records import NoPlan
from tests.buffer.world import World


def test_nothing_is_granted_before_the_first_policy(client) -> None:
    world = World(client)
    grant = world.store.lease(world.worker("a", None), 4)
    assert grant.leases == () and grant.state is RunState.WAITING and grant.policy is None
    assert grant.refusal == "no policy has been published yet"


def test_a_worker_without_a_policy_is_told_which_to_load(world: World) -> None:
    assert world.lease("a", None, 1) == []
    assert world.refusal == "load v0-first first"


def test_a_worker_of_an_older_lineage_is_told_which_to_load(world: World) -> None:
    old = world.worker("a", 0)
    world.resume(0, "second")
    grant = world.store.lease(old, 1)
    assert grant.refusal == "v0-first is superseded: load v0-second"
    assert str(grant.policy) == "v0-second"


def test_a_worker_with_a_policy_that_was_never_published_gets_nothing(world: World) -> None:
    assert world.lease("a", 5, 1) == []
    assert world.refusal == "v5 is not published: load v0-first"


def test_leases_are_granted_up_to_the_staleness_bound(world: World) -> None:
    # (max_staleness + 0 + 1) * 2 groups may ever be sampled from version 0.
    assert len(world.lease("a", 0, 9)) == 4
    assert world.refusal == (
        "0 groups kept and 4 leases open: all that v0 may sample; waiting for step 0 to be trained"
    )


def test_a_worker_that_is_behind_may_sample_less_and_is_told_what_to_load(world: World) -> None:
    world.sample(0, 4)
    world.train(0)
    assert world.lease("a", 0, 1) == []
    assert world.refusal.endswith("load v1-first")
    assert len(world.lease("a", 1, 9)) == 2


def test_uniform_and_failed_groups_free_their_slot(world: World) -> None:
    for kind in ("all_correct", "all_wrong", "failed") * 4:
        (lease,) = world.lease("a", 0, 1)
        assert world.submit(lease, kind) == kind
    assert len(world.lease("a", 0, 9)) == 4
    assert world.conserved().groups["dropped_failed"] == 4


def test_a_heartbeat_asks_for_nothing_and_is_seen(world: World) -> None:
    grant = world.store.lease(world.worker("a", 0), 0)
    assert grant.leases == () and grant.refusal == "" and str(grant.policy) == "v0-first"
    assert [worker.worker_id for worker in world.counts().workers] == ["a"]
    world.clock.sleep(121)
    assert world.counts().workers == ()


def test_an_expired_lease_requeues_its_prompt_at_the_front(world: World) -> None:
    first, second = world.lease("a", 0, 2)
    world.clock.sleep(30)
    assert world.store.renew(world.worker("a", 0), [second]) == []
    world.clock.sleep(31)
    assert world.place(first.group_id) == "queued" and world.place(second.group_id) == "leased"
    again, *_ = world.lease("b", 0, 1)
    assert again.group_id == first.group_id and again.attempt == 2
    assert world.conserved().totals["leases_expired"] == 1


def test_a_lease_that_was_lost_cannot_be_renewed(world: World) -> None:
    kept, done = world.lease("a", 0, 2)
    world.submit(done)
    assert world.store.renew(world.worker("a", 0), [kept, done]) == [done]
    world.clock.sleep(61)
    assert world.store.renew(world.worker("a", 0), [kept]) == [kept]
    (again,) = world.lease("b", 0, 1)
    assert again.group_id == kept.group_id
    assert world.store.renew(world.worker("a", 0), [kept, again]) == [kept]


def test_a_returned_lease_is_leased_again_at_once(world: World) -> None:
    (lease,) = world.lease("a", 0, 1)
    assert world.store.give_back([lease]) == 1
    assert world.store.give_back([lease]) == 0
    (again,) = world.lease("b", 0, 1)
    assert again.group_id == lease.group_id
    assert world.store.give_back([lease]) == 0, "the lease that replaced it is not returned"
    assert world.conserved().totals["leases_returned"] == 1


def test_a_prompt_that_no_pod_can_finish_is_given_up(world: World) -> None:
    """Such a prompt waits at the front, so it would be leased for ever; pods it ends count too."""
    (first,) = world.lease("a", 0, 1)
    for attempt in range(1, 9):
        (lease,) = [first] if attempt == 1 else world.lease("a", 0, 1)
        assert (lease.group_id, lease.attempt) == (first.group_id, attempt)
        if attempt % 2:
            assert world.store.give_back([lease], in_vain=True) == 1
        else:
            world.clock.sleep(61)
            world.store.expire()
    counts = world.conserved()
    assert world.place(first.group_id) == "dropped_failed"
    assert (counts.totals["given_up"], counts.totals["failed"]) == (1, 1)
    assert world.lease("a", 0, 1)[0].group_id != first.group_id
    assert world.submit(lease) is Disposition.FAILED


def test_prompts_given_up_use_the_allowance_of_a_step(make_world: Callable[..., World]) -> None:
    world = make_world(max_leases_per_step=2, prompts_per_step=2)
    for _ in range(2 * 8):
        (lease,) = world.lease("a", 0, 1)
        world.store.give_back([lease], in_vain=True)
    assert world.lease("a", 0, 1) == []
    plan = world.ask(0)
    assert isinstance(plan, NoPlan) and plan.finished
    assert "100% could not be judged" in plan.reason


def test_a_pod_that_stops_returns_its_leases_as_often_as_it_likes(world: World) -> None:
    for _ in range(20):
        (lease,) = world.lease("a", 0, 1)
        world.store.give_back([lease])
    assert world.place(lease.group_id) == "queued"


def test_a_late_submission_is_taken_while_nothing_has_replaced_it(world: World) -> None:
    (lease,) = world.lease("a", 0, 1)
    world.clock.sleep(61)
    assert world.place(lease.group_id) == "queued"
    assert world.submit(lease) is Disposition.KEPT
    assert world.submit(lease) is Disposition.KEPT
    assert world.conserved().groups["ready"] == 1


def test_a_late_submission_is_a_duplicate_once_the_prompt_is_leased_again(world: World) -> None:
    (lease,) = world.lease("a", 0, 1)
    world.clock.sleep(61)
    (again,) = world.lease("b", 0, 1)
    assert world.submit(lease) is Disposition.DUPLICATE
    assert world.submit(again, "all_wrong") is Disposition.ALL_WRONG
    assert world.submit(lease) is Disposition.DUPLICATE
    assert world.submit(again, "all_wrong") is Disposition.ALL_WRONG
    assert world.conserved().totals["duplicate"] == 2


def test_a_late_submission_without_room_for_its_version_stays_queued(world: World) -> None:
    world.sample(0, 2)
    old = world.lease("a", 0, 2)
    world.train(0)
    new = world.lease("b", 1, 2)
    world.clock.sleep(61)
    world.sample(1, 1)  # takes the first of the old ones again
    assert [world.submit(lease) for lease in new] == [Disposition.KEPT] * 2
    # 5 groups kept, and no more than 4 may ever be of version 0.
    assert [world.submit(lease) for lease in old] == [Disposition.DUPLICATE, Disposition.EXPIRED]
    assert world.place(old[1].group_id) == "queued"
    assert world.submit(old[1]) is Disposition.EXPIRED
    world.conserved()


def test_leases_beyond_the_allowance_of_a_step_are_refused(
    make_world: Callable[..., World],
) -> None:
    world = make_world(max_leases_per_step=3, prompts_per_step=2)
    for kind in ("all_wrong", "all_wrong", "kept"):
        (lease,) = world.lease("a", 0, 1)
        world.submit(lease, kind)
    assert world.lease("a", 0, 1) == []
    assert world.refusal == "step 0 has used its 3 leases"
