"""The embedded server and PING, for real."""

import os
import signal
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from dapod.cli import redis_ping, valkey
from dapod.cli.ports import free_ports
from dapod.cli.processes import TOKEN, carrying
from dapod.config import ConfigError
from tests.cli.waiting import wait_until


class Server:
    """A Valkey started as a run starts it."""

    def __init__(self, directory: Path, *extra: str) -> None:
        (self.port,) = free_ports(1)
        self.token = {TOKEN: uuid.uuid4().hex}
        self.process = subprocess.Popen(
            [*valkey.command(self.port, directory), *extra],
            env={**os.environ, **self.token},
            stdout=subprocess.DEVNULL,
        )

    def answer(self) -> str:
        try:
            return redis_ping.ping(urlsplit(valkey.url(self.port)))
        except OSError:
            return ""


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[object]:
    servers: list[Server] = []

    def start(*extra: str) -> Server:
        servers.append(Server(tmp_path, *extra))
        wait_until(lambda: servers[-1].answer() != "", "an answer")
        return servers[-1]

    yield start
    for server in servers:
        server.process.kill()
        server.process.wait(timeout=5)


def test_it_answers_ping(serve) -> None:
    server = serve()
    assert server.answer() == "+PONG"
    redis_ping.check(valkey.url(server.port))


def test_its_process_is_found_by_the_runs_token(serve) -> None:
    # By default Valkey writes its title over the environment.
    server = serve()
    assert carrying(server.token) == [server.process.pid]


def test_sigterm_ends_it_well(serve) -> None:
    server = serve()
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(timeout=5) == 0


def test_a_password_is_used_and_a_wrong_one_refused(serve) -> None:
    server = serve("--requirepass", "right")
    redis_ping.check(f"redis://:right@127.0.0.1:{server.port}")
    with pytest.raises(ConfigError, match="refuses this user and password") as error:
        redis_ping.check(f"redis://:wrong@127.0.0.1:{server.port}")
    assert "wrong@" not in str(error.value)
