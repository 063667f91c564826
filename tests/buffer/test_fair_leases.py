"""Where there is less room than pods ask for, whoever holds fewest leases is served first."""

import math

import pytest
import redis

from services.buffer.records import LeaseId
from services.buffer.scripts import Scripts
from tests.buffer.simulation import Pod, Simulation
from tests.buffer.world import World, make_config, make_prompts

ASKS_AGAIN = 2.0
"""Seconds after which a pod that asked in vain is not waited for: lease.lua."""


@pytest.fixture
def busy(world: World) -> list[LeaseId]:
    """All four leases that version 0 allows, held by pod `busy`; `new` has asked in vain."""
    leases = world.lease("busy", 0, 9)
    assert len(leases) == 4 and world.lease("new", 0, 2) == []
    return leases


def test_room_that_comes_free_goes_to_the_pod_with_fewer_leases(
    world: World, busy: list[LeaseId]
) -> None:
    world.submit(busy[0], "all_wrong")
    assert world.lease("busy", 0, 1) == [], "though it asked first"
    assert world.refusal == (
        "1 more groups may be leased: new, which holds fewer leases, is served first"
    )
    assert len(world.lease("new", 0, 2)) == 1
    world.conserved()


def test_pods_with_as_many_leases_each_are_served_as_they_ask(
    world: World, busy: list[LeaseId]
) -> None:
    for lease in busy[:2]:
        world.submit(lease, "all_wrong")
    new = world.lease("new", 0, 9)
    assert len(new) == 2
    world.submit(busy[2], "all_wrong")
    world.submit(new[0], "all_wrong")
    assert len(world.lease("new", 0, 1)) == 1
    assert len(world.lease("busy", 0, 1)) == 1


def test_one_that_asks_for_much_gets_no_more_than_its_share_at_a_time(
    world: World, busy: list[LeaseId]
) -> None:
    assert world.lease("third", 0, 9) == []
    for lease in busy:
        world.submit(lease, "all_wrong")
    assert len(world.lease("new", 0, 9)) == 1, "third and busy have none"
    assert len(world.lease("third", 0, 9)) == 1
    assert len(world.lease("busy", 0, 9)) == 2, "nobody has fewer than one any more"


def test_a_pod_that_asks_no_more_is_not_waited_for(world: World, busy: list[LeaseId]) -> None:
    world.submit(busy[0], "all_wrong")
    world.clock.sleep(ASKS_AGAIN + 0.1)
    assert len(world.lease("busy", 0, 1)) == 1


def test_a_pod_that_got_all_it_asked_for_holds_nobody_up(world: World, busy: list[LeaseId]) -> None:
    world.submit(busy[0], "all_wrong")
    assert len(world.lease("new", 0, 1)) == 1
    world.submit(busy[1], "all_wrong")
    assert len(world.lease("busy", 0, 1)) == 1


def test_a_pod_with_an_older_policy_holds_nobody_up(world: World) -> None:
    world.sample(0, 4)
    world.train(0)
    assert world.lease("old", 0, 1) == []
    assert len(world.lease("busy", 1, 9)) == 2


def test_a_heartbeat_is_no_question(world: World, busy: list[LeaseId]) -> None:
    world.submit(busy[0], "all_wrong")
    assert world.lease("new", 0, 0) == []
    assert world.lease("busy", 0, 1) == [], "new still asks"


def waits(client: redis.Redis, *, fair: bool, seed: int) -> tuple[float, float]:
    """Seconds until a pod that joins a busy one has a lease (inf: never), and of the whole run."""
    client.flushall()
    algorithm = {"max_staleness": 1, "prompts_per_step": 8}
    config = make_config(algorithm=algorithm, buffer={"lease_seconds": 1e6})
    world = World(client, config=config, prompts=make_prompts(500))
    world.resume(0)
    if not fair:
        first_come_first_served(client, world.scripts)
    began = world.clock()
    new = Pod("new", 1, joins=3)
    simulation = Simulation(
        world,
        seed,
        informative=0.8,
        slots=16,
        train_seconds=20,
        retry_seconds=0.2,
        pods=[Pod("busy", 3), new],
    )
    simulation.run(8)
    waited = math.inf if new.waited_seconds is None else new.waited_seconds
    return waited, world.clock() - began


def first_come_first_served(client: redis.Redis, scripts: Scripts) -> None:
    """Grants by room alone, as if no other pod had asked."""
    fair = scripts._scripts["lease"].script
    text = fair.decode() if isinstance(fair, bytes) else fair
    rule = "local others = args.max_prompts > 0 and rivals() or {}"
    assert rule in text
    scripts._scripts["lease"] = client.register_script(text.replace(rule, "local others = {}"))


def test_a_new_pod_beside_one_that_keeps_the_trainer_busy_need_not_wait_for_a_step(client) -> None:
    """20 s of training a step; without the rule the busy one takes all room for several steps."""
    fair = [waits(client, fair=True, seed=seed) for seed in range(3)]
    plain = [waits(client, fair=False, seed=seed) for seed in range(3)]
    print(f"seconds to the first lease and of the run: {fair}; without the rule {plain}")
    assert max(wait for wait, _ in fair) < 20 < max(wait for wait, _ in plain)
    assert sum(run for _, run in fair) < 1.05 * sum(run for _, run in plain)
