"""Commit, checkpoint, resume: nothing is trained twice, whatever was lost."""

import pytest
import redis

from dapod.ledger import LedgerEntry
from dapod.types import Disposition, PolicyVersion
from services.buffer.records import NoPlan
from services.buffer.store import Refused
from tests.buffer.world import World, restore, snapshot


def ids(plan) -> list[str]:
    return [group.group_id for group in plan.groups]


def test_a_commit_moves_the_batch_to_trained_and_may_be_repeated(world: World) -> None:
    world.sample(0, 2)
    plan = world.cut(0)
    assert [str(w.loaded) for w in world.commit(plan).workers] == ["v0-first"]
    before = world.counts()
    world.commit(plan)
    assert world.conserved() == before
    assert before.groups["trained"] == 2 and str(before.policy) == "v1-first"


def test_a_commit_of_another_lineage_or_out_of_order_changes_nothing(world: World) -> None:
    world.sample(0, 2)
    entry = world.entry(world.cut(0))
    with pytest.raises(Refused, match="lineage other"):
        world.store.commit(entry, PolicyVersion(number=1, lineage="other"))
    with pytest.raises(Refused, match="step 3 is out of order"):
        late = LedgerEntry(step=3, group_ids=entry.group_ids, digest=entry.digest)
        world.store.commit(late, PolicyVersion(number=4, lineage="first"))
    assert world.conserved().groups["batched"] == 2


def test_a_committed_step_cannot_be_committed_with_another_batch(world: World) -> None:
    world.step(0)
    other = LedgerEntry(step=0, group_ids=("0-1", "0-2"), digest="other")
    with pytest.raises(Refused, match="committed before, with another batch"):
        world.store.commit(other, PolicyVersion(number=1, lineage="first"))


def test_a_group_cannot_be_trained_in_two_steps(world: World) -> None:
    first = world.step(0)
    again = LedgerEntry(step=1, group_ids=tuple(ids(first)), digest="again")
    with pytest.raises(Refused, match="was trained in step 0 already"):
        world.store.commit(again, PolicyVersion(number=2, lineage="first"))
    world.conserved()


def test_a_checkpoint_frees_the_payloads_of_the_steps_before_it(world: World) -> None:
    first, second = world.step(0), world.step(1)
    assert world.counts().payload_bytes > 0
    assert world.store.checkpointed(1) == 2
    assert world.store.checkpointed(1) == 0 and world.store.checkpointed(0) == 0
    assert world.store.fetch(ids(first), 1 << 20) == [b"", b""]
    assert all(world.store.fetch(ids(second), 1 << 20))
    assert world.store.checkpointed(2) == 2
    counts = world.conserved()
    assert (counts.checkpoint_step, counts.payload_bytes, counts.groups["trained"]) == (2, 0, 4)
    with pytest.raises(Refused, match="lies beyond the policy v2"):
        world.store.checkpointed(3)


def test_after_a_crash_the_steps_past_the_checkpoint_are_handed_out_again_verbatim(
    world: World,
) -> None:
    plans = [world.step(step) for step in range(4)]
    world.store.checkpointed(2)
    open_lease, *_ = world.lease("a", 4, 1)
    resumed = world.resume(2, "second")
    assert (resumed.replay_steps, resumed.dissolved_steps) == ((2, 3), ())
    assert world.conserved().groups["batched"] == 4
    for step in (2, 3):
        again = world.cut(step)
        assert not again.new
        assert (again.groups, again.digest) == (plans[step].groups, plans[step].digest)
        world.commit(again)
    assert world.conserved().groups["trained"] == 8
    assert world.submit(open_lease) is Disposition.KEPT, "a lease of the old lineage still counts"
    assert isinstance(world.ask(4), NoPlan)
    world.sample(4, 1)
    world.train(4)
    world.conserved()


def test_resumes_are_counted_but_not_the_first_start_and_no_repeated_call(world: World) -> None:
    assert world.counts().totals.get("resumes", 0) == 0  # the world's trainer has started
    world.resume(0, "second")
    world.resume(0, "second")
    assert world.counts().totals["resumes"] == 1
    world.resume(0, "third")
    assert world.counts().totals["resumes"] == 2


def test_a_resume_may_be_repeated(world: World) -> None:
    for step in range(3):
        world.step(step)
    first = world.resume(1, "second")
    before = world.conserved()
    assert world.store.resume(PolicyVersion(number=1, lineage="second"), world.ledger[:1]) == first
    assert world.conserved() == before
    world.commit(world.cut(1))
    with pytest.raises(Refused, match="lineage second is at v2 already"):
        world.store.resume(PolicyVersion(number=1, lineage="second"), world.ledger[:1])


def test_a_checkpoint_that_went_backwards_is_refused_and_says_which_is_needed(world: World) -> None:
    for step in range(3):
        world.step(step)
    world.store.checkpointed(2)
    before = world.counts()
    with pytest.raises(Refused, match="resume from checkpoint 2"):
        world.resume(1, "second")
    assert world.counts() == before


def test_a_step_that_lost_a_payload_is_dissolved_and_cut_anew(world: World) -> None:
    plans = [world.step(step) for step in range(3)]
    lost, other = ids(plans[1])
    world.client.hdel(world.key(f"g:{lost}"), "payload")
    assert world.counts().conservation_error == 1
    resumed = world.resume(1, "second")
    assert (resumed.replay_steps, resumed.dissolved_steps) == ((), (1, 2))
    world.conserved()
    assert world.place(lost) == "queued" and world.place(other) == "ready"
    assert ids(world.train(1)) == [other, ids(plans[2])[0]]
    world.conserved()


def test_a_batch_that_redis_forgot_is_rebuilt_from_the_commit(world: World) -> None:
    world.step(0)
    leases = world.lease("a", 1, 2)
    before = snapshot(world.client)
    for lease in leases:
        world.submit(lease)
    plan = world.cut(1)
    restore(world.client, before)
    assert world.place(leases[0].group_id) == "leased"
    world.commit(plan)
    counts = world.conserved()
    assert counts.groups["trained"] == 4 and counts.groups["leased"] == 0
    assert counts.next_step == 2
    world.step(2)
    assert world.submit(leases[0]) is Disposition.DUPLICATE
    world.conserved()


def test_prompts_that_redis_forgot_are_not_trained_again(world: World) -> None:
    before = snapshot(world.client)
    plan = world.step(0)
    restore(world.client, before)
    world.store.commit(world.entry(plan), PolicyVersion(number=1, lineage="first"))
    assert world.conserved().groups["trained"] == 2
    trained = set(ids(plan))
    for step in range(1, 25):
        trained_now = ids(world.step(step))
        assert not trained & set(trained_now)
        trained |= set(trained_now)
    world.conserved()


def test_another_ledger_of_the_same_step_yields_to_the_witness(world: World) -> None:
    world.sample(0, 2)
    before = snapshot(world.client)
    trained = world.sample(0, 2)
    plan = world.cut(0)
    forged = LedgerEntry(step=0, group_ids=tuple(trained), digest="of-the-trainer")
    world.store.commit(forged, PolicyVersion(number=1, lineage="first"))
    assert [world.place(id_) for id_ in trained] == ["trained"] * 2
    assert [world.place(id_) for id_ in ids(plan)] == ["ready"] * 2
    world.conserved()
    assert before


def test_work_that_a_rebuilt_step_makes_too_old_is_sampled_again(make_world) -> None:
    world = make_world(max_staleness=0)
    before = snapshot(world.client)
    plan_ids = world.sample(0, 2)
    plan = world.cut(0)
    restore(world.client, before)
    # What is sampled meanwhile cannot be trained: step 1 takes version 1 only.
    redone = world.lease("a", 0, 2)
    assert [lease.group_id for lease in redone] == plan_ids
    world.submit(redone[0], "all_wrong")
    (third,) = world.lease("a", 0, 1)
    world.submit(third)
    world.commit(plan)
    assert world.place(third.group_id) == "queued"
    assert [world.place(id_) for id_ in plan_ids] == ["trained"] * 2
    assert world.conserved().payload_bytes == 0
    world.step(1)
    world.conserved()


def test_an_empty_redis_is_rebuilt_from_the_checkpoint(world: World) -> None:
    trained = {id_ for step in range(3) for id_ in ids(world.step(step))}
    world.client.flushall()
    world.store.start(world.config.digest())
    resumed = world.resume(3, "second")
    assert (resumed.replay_steps, resumed.dissolved_steps) == ((), ())
    counts = world.conserved()
    assert (counts.next_step, counts.groups["trained"], counts.checkpoint_step) == (3, 6, 3)
    assert not trained & set(ids(world.step(3)))
    world.conserved()


def test_a_run_that_starts_over_before_its_first_checkpoint_replays_from_step_0(
    world: World,
) -> None:
    plan = world.step(0)
    assert world.resume(0, "second").replay_steps == (0,)
    assert world.cut(0).digest == plan.digest


def test_two_replicas_over_one_redis_are_as_right_as_one(client: redis.Redis) -> None:
    one = World(client)
    one.resume(0)
    two = World(client, clock=one.clock)
    two.lineage = one.lineage
    for step in range(6):
        a, b = one.lease("a", step, 1), two.lease("b", step, 1)
        two.policies.update(one.policies)
        one.policies.update(two.policies)
        assert two.submit(a[0]) is Disposition.KEPT and one.submit(b[0]) is Disposition.KEPT
        plan = two.cut(step)
        assert one.cut(step).groups == plan.groups
        one.commit(plan)
        two.commit(plan)
        assert one.conserved() == two.conserved()


def test_work_that_a_resume_makes_too_old_is_sampled_again(make_world) -> None:
    world = make_world(max_staleness=0)
    before = snapshot(world.client)
    plan = world.step(0)
    restore(world.client, before)
    redone = world.lease("a", 0, 2)
    assert [lease.group_id for lease in redone] == ids(plan)
    world.submit(redone[0], "all_wrong")
    (third,) = world.lease("a", 0, 1)
    world.submit(third)
    world.resume(1, "second")
    assert world.place(third.group_id) == "queued"
    world.step(1)
    world.conserved()


def test_a_run_that_ended_without_a_batch_may_try_again_after_a_restart(make_world) -> None:
    world = make_world(max_leases_per_step=2)
    for lease in world.lease("a", 0, 2):
        world.submit(lease, "all_correct")
    found = world.ask(0)
    assert isinstance(found, NoPlan) and found.finished
    world.resume(0, "second")
    assert len(world.lease("a", 0, 2)) == 2


def test_a_witness_that_took_groups_of_a_later_step_dissolves_that_step(world: World) -> None:
    plans = [world.step(step) for step in range(3)]
    world.resume(0, "second")
    entry = LedgerEntry(step=0, group_ids=tuple(ids(plans[1])), digest="of-the-trainer")
    world.store.commit(entry, PolicyVersion(number=1, lineage="second"))
    assert [world.place(id_) for id_ in ids(plans[1])] == ["trained"] * 2
    assert [world.place(id_) for id_ in ids(plans[2])] == ["ready"] * 2
    counts = world.conserved()
    assert counts.next_step == 1 and counts.groups["batched"] == 0


def test_a_step_whose_payload_is_not_the_one_in_its_digest_is_dissolved(world: World) -> None:
    plan = world.step(0)
    world.client.hset(world.key(f"g:{ids(plan)[0]}"), "sha256", "another")
    assert world.resume(0, "second").dissolved_steps == (0,)
    world.conserved()


def test_a_lost_ledger_before_the_checkpoint_is_rebuilt_and_the_rest_replayed(world: World) -> None:
    plans = [world.step(step) for step in range(3)]
    world.store.checkpointed(1)
    world.client.delete(world.key("ledger:0"))
    assert world.counts().conservation_error == 1
    assert world.resume(1, "second").replay_steps == (1, 2)
    world.conserved()
    assert not world.client.exists(world.key(f"g:{ids(plans[0])[0]}")), "nothing freed comes back"
    assert world.cut(1).groups == plans[1].groups


def test_a_checkpoint_that_knows_better_takes_groups_from_the_steps_to_replay(world: World) -> None:
    plans = [world.step(step) for step in range(3)]
    world.ledger[0] = LedgerEntry(step=0, group_ids=tuple(ids(plans[1])), digest="known")
    assert world.resume(1, "second").dissolved_steps == (1, 2)
    assert [world.place(id_) for id_ in ids(plans[1])] == ["trained"] * 2
    assert [world.place(id_) for id_ in ids(plans[0])] != ["trained"] * 2
    world.conserved()


def test_of_what_is_too_much_the_leases_go_first(make_world) -> None:
    world = make_world(prompts_per_step=1)
    before = snapshot(world.client)
    world.sample(0, 1)
    plan = world.cut(0)
    restore(world.client, before)
    again, sampled = world.lease("a", 0, 2)
    world.submit(sampled)
    world.submit(again, "all_wrong")
    (leased,) = world.lease("a", 0, 1)
    world.commit(plan)
    assert world.place(sampled.group_id) == "ready" and world.place(leased.group_id) == "queued"
    world.conserved()
