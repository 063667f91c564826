"""Invariants 3 and 4 on a virtual clock, with a straggler 20 times slower than the rest."""

import pytest
import redis

from tests.buffer.simulation import Simulation
from tests.buffer.test_batch import with_simple_rule
from tests.buffer.world import World, make_config, make_prompts

STEPS, N = 12, 2


def simulate(
    client: redis.Redis, max_staleness: int, seed: int, informative: float, *, simple: bool = False
) -> Simulation:
    client.flushall()
    algorithm = {"max_staleness": max_staleness, "prompts_per_step": N}
    config = make_config(algorithm=algorithm, buffer={"lease_seconds": 1e6})
    world = World(client, config=config, prompts=make_prompts(500))
    world.resume(0)
    if simple:
        with_simple_rule(client, world)
    simulation = Simulation(world, seed, informative)
    simulation.run(STEPS)
    return simulation


@pytest.mark.parametrize("max_staleness", [0, 1, 2, 3])
@pytest.mark.parametrize("informative", [0.3, 0.9])
def test_no_group_is_ever_stale_lost_or_trained_twice(
    client, max_staleness: int, informative: float
) -> None:
    simulation = simulate(client, max_staleness, 0, informative)
    trained = [group.group_id for plan in simulation.plans for group in plan.groups]
    assert len(trained) == len(set(trained)) == STEPS * N
    staleness = [plan.step - g.policy_number for plan in simulation.plans for g in plan.groups]
    assert min(staleness) >= 0 and max(staleness) <= max_staleness
    counts = simulation.world.conserved()
    assert counts.totals["kept"] == len(trained) + counts.groups["ready"], (
        "no valid group is thrown away"
    )


def test_the_simple_rule_hands_out_stale_groups(client) -> None:
    world = simulate(client, 2, 0, 1.0, simple=True).world
    assert world.counts().totals["stale"] > 0
