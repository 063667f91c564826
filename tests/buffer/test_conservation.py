"""Invariant 1: a group is in exactly one place, recounted from the keys."""

import pytest

from tests.buffer.world import World


@pytest.fixture
def busy(world: World) -> World:
    """Groups in every place: steps 0 and 1 trained, 0 behind the checkpoint, 2 batched."""
    world.step(0)
    world.step(1)
    world.store.checkpointed(1)
    for kind in ("all_correct", "all_wrong", "failed"):
        world.submit(world.lease("a", 2, 1)[0], kind)
    world.sample(2, 3)
    world.cut(2)
    world.lease("a", 2, 1)
    counts = world.conserved()
    assert all(counts.groups.values()), counts.groups
    return world


def test_every_group_is_in_exactly_one_place(busy: World) -> None:
    assert busy.counts().groups == {
        "queued": 6,
        "leased": 1,
        "ready": 1,
        "batched": 2,
        "trained": 4,
        "dropped_all_correct": 1,
        "dropped_all_wrong": 1,
        "dropped_failed": 1,
    }


def test_deleting_any_one_key_behind_the_services_back_shows(busy: World) -> None:
    # The two keys that say who asked last hold no group and refill with the next heartbeat.
    spared = {busy.key("workers").encode(), busy.key("seen").encode()}
    keys = set(busy.client.scan_iter()) - spared
    assert len(keys) > 20
    for key in sorted(keys):
        value = busy.client.dump(key)
        busy.client.delete(key)
        counts = busy.counts()
        assert counts.conservation_error > 0, key
        assert counts.faults, key
        busy.client.restore(key, 0, value)
        busy.conserved()


def test_a_group_in_two_places_shows(busy: World) -> None:
    (trained, *_) = busy.client.zrange(busy.key("trained"), 0, 0)
    busy.client.zadd(busy.key("queued"), {trained: 0})
    assert busy.counts().conservation_error > 0


def test_a_group_that_moved_from_step_to_step_shows(busy: World) -> None:
    (batched, *_) = busy.client.zrange(busy.key("batched"), 0, 0)
    busy.client.zadd(busy.key("batched"), {batched: 7})
    assert busy.counts().conservation_error > 0


def test_a_lost_payload_shows(busy: World) -> None:
    (ready,) = busy.client.zrange(busy.key("ready"), 0, 0)
    busy.client.hdel(busy.key(f"g:{ready.decode()}"), "payload")
    counts = busy.counts()
    assert counts.conservation_error == 1
    assert counts.faults == (f"{ready.decode()} is ready without a payload",)
