"""A Redis with a password, a user of few rights, and TLS: what works, what a mistake is told."""

from __future__ import annotations

import re
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from dapod.cli import redis_ping
from dapod.cli.ports import free_ports
from dapod.config import ConfigError
from services.buffer.connection import check_memory, check_version, connect, permitted
from services.buffer.scripts import StoreAway
from tests.buffer.test_main import needs_model, running
from tests.buffer.test_metrics import registry_of, value
from tests.buffer.world import World, repository
from tests.cli.waiting import wait_until
from tests.dapod.certificates import Authority
from tests.tls_redis import HOST, PASSWORD, GuardedValkey, tls_in_front_of

DOCS = (repository() / "docs" / "kubernetes.md").read_text()
COMPONENT = repository() / "k8s" / "components" / "external-redis" / "kustomization.yaml"


def documented_rights() -> str:
    found = re.search(r"^ +user dapod on >PASSWORD (.*)$", DOCS, re.M)
    assert found, "docs/kubernetes.md has no line of an ACL file"
    return found[1]


def documented_url(port: int, authority_file: Path) -> str:
    """The component's, with what everybody must put in."""
    url = COMPONENT.read_text().partition("--from-literal=url='")[2].partition("'")[0]
    for theirs, ours in (
        ("PASSWORD", quote(PASSWORD, safe="")),
        ("redis.example.com:6380", f"{HOST}:{port}"),
        ("/etc/redis/ca.crt", str(authority_file)),
    ):
        assert url.count(theirs) == 1, url
        url = url.replace(theirs, ours)
    return url


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("guarded")


@pytest.fixture(scope="module")
def ours(folder: Path) -> Path:
    """The server's certificate, for an address and no name, with the authority it is from."""
    Authority("ours").issue(folder / "ours", names=())
    return folder / "ours"


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Path:
    """Somebody else's."""
    Authority("theirs").issue(folder / "theirs")
    return folder / "theirs"


@pytest.fixture(scope="module")
def valkey(folder: Path) -> Iterator[GuardedValkey]:
    server = GuardedValkey(folder, documented_rights())
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="module")
def port(valkey: GuardedValkey, ours: Path) -> Iterator[int]:
    """Where it speaks TLS."""
    with tls_in_front_of(valkey.port, ours) as port:
        yield port


@pytest.fixture
def empty(valkey: GuardedValkey) -> None:
    with connect(f"redis://:{quote(PASSWORD, safe='')}@{HOST}:{valkey.port}/0") as everybody:
        everybody.flushall()


@pytest.mark.usefixtures("empty")
def test_a_run_needs_no_more_than_the_documented_rights_and_url(port: int, ours: Path) -> None:
    url = documented_url(port, ours / "ca.crt")
    redis_ping.check(url)
    with connect(url) as client:
        world = World(client)
        check_version(client, url)
        check_memory(client, world.config)
        world.resume(0)
        world.step(0)
        leases = world.lease("a", 1, 2)
        world.submit(leases[0])
        world.resume(0, lineage="later")
        world.train(0)
        world.conserved()
        assert world.scripts._waits_for_aof


def test_the_documented_rights_cover_every_command_of_every_script(valkey: GuardedValkey) -> None:
    scripts = (repository() / "services" / "buffer" / "lua").glob("*.lua")
    called = {
        name.lower()
        for script in scripts
        for name in re.findall(r"redis\.call\('(\w+)'", script.read_text())
    }
    words = [word[1:] for word in documented_rights().split() if word.startswith("+")]
    granted = {word for word in words if not word.startswith("@")}
    with connect(f"redis://:{quote(PASSWORD, safe='')}@{HOST}:{valkey.port}/0") as everybody:
        for category in (word[1:] for word in words if word.startswith("@")):
            granted |= {str(name) for name in everybody.acl_cat(category)}
    assert len(called) > 20 and called <= granted


@pytest.mark.usefixtures("empty")
def test_metrics_of_a_guarded_redis_go_and_come_back_with_it(
    port: int, ours: Path, valkey: GuardedValkey
) -> None:
    with connect(documented_url(port, ours / "ca.crt")) as client:
        world = World(client)
        registry = registry_of(world)
        world.resume(0)
        world.step(0)
        assert value(registry, "redis_up") == 1
        valkey.kill()
        assert value(registry, "redis_up") == 0
        assert value(registry, "redis_memory_bytes") is None
        valkey.start()
        # A connection of before may be noticed only when it is used.
        wait_until(lambda: value(registry, "redis_up") == 1, "Redis is up again")
        assert value(registry, "redis_memory_bytes") > 100_000
        assert value(registry, "redis_memory_limit_bytes") == 0
        assert value(registry, "redis_append_only_enabled") == 1
        assert value(registry, "redis_append_only_ok") == 1
        assert value(registry, "policy_version") == 1


def test_a_server_may_ask_for_a_certificate_of_ours(
    valkey: GuardedValkey, ours: Path, theirs: Path
) -> None:
    with tls_in_front_of(valkey.port, ours, asks_clients=True) as port:
        plain = documented_url(port, ours / "ca.crt")
        url = f"{plain}&ssl_certfile={ours}/tls.crt&ssl_keyfile={ours}/tls.key"
        redis_ping.check(url)
        connect(url).close()
        for refused in (
            plain,
            f"{plain}&ssl_certfile={theirs}/tls.crt&ssl_keyfile={theirs}/tls.key",
        ):
            with pytest.raises(ConfigError):
                redis_ping.check(refused)
            with pytest.raises(ConfigError):
                connect(refused, patience_seconds=0.1)


MISTAKES: dict[str, tuple[Callable[[str], str], str]] = {
    "a wrong password": (
        lambda url: url.replace(quote(PASSWORD, safe=""), "wr0ngpass"),
        "refuses this user and password",
    ),
    "a user that is not there": (
        lambda url: url.replace("dapod:", "somebody:"),
        "refuses this user and password",
    ),
    "no password": (
        lambda url: url.replace(f"dapod:{quote(PASSWORD, safe='')}@", ""),
        "wants a password: write it into the URL",
    ),
    "a password that is not percent-encoded": (
        lambda url: url.replace(quote(PASSWORD, safe=""), PASSWORD),
        "/ is written %2F",
    ),
    "somebody else's authority": (
        lambda url: url.replace("ours/ca", "theirs/ca"),
        "name the file of its authority with ?ssl_ca_certs=FILE",
    ),
    "no authority": (
        lambda url: url.partition("?")[0],
        "name the file of its authority with ?ssl_ca_certs=FILE",
    ),
    "a file that is not there": (
        lambda url: url.replace("ca.crt", "nothing.crt"),
        "nothing.crt holds no certificates that can be read (No such file or directory)",
    ),
    "a key for a certificate": (
        lambda url: url.replace("ca.crt", "tls.key"),
        "tls.key holds no certificates that can be read",
    ),
    "another name": (
        lambda url: url.replace(HOST, "localhost"),
        "certificate is for another name",
    ),
    "no TLS": (lambda url: url.replace("rediss:", "redis:"), "if it wants TLS"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.parametrize("who", ["buffer", "dapod run"])
def test_a_mistake_is_named_and_no_password(
    who: str, mistake: str, port: int, ours: Path, theirs: Path
) -> None:
    spoil, sentence = MISTAKES[mistake]
    url = spoil(documented_url(port, ours / "ca.crt"))
    with pytest.raises(ConfigError) as refusal:
        if who == "buffer":
            connect(url, patience_seconds=0.1)
        else:
            redis_ping.check(url)
    said = str(refusal.value)
    assert sentence in said and "\n" not in said
    assert not [secret for secret in (*_forms(PASSWORD), "wr0ngpass") if secret in said]


def test_a_server_that_speaks_no_tls_is_named(valkey: GuardedValkey, ours: Path) -> None:
    with pytest.raises(ConfigError, match="no answer to PING"):
        redis_ping.check(documented_url(valkey.port, ours / "ca.crt"))


@pytest.mark.parametrize("missing", ["+info", "+@hash", "+@scripting"])
def test_a_user_with_too_few_rights_is_told_what_misses(missing: str, tmp_path: Path) -> None:
    rights = [right for right in documented_rights().split() if right != missing]
    server = GuardedValkey(tmp_path, " ".join(rights))
    server.start()
    url = f"redis://dapod:{quote(PASSWORD, safe='')}@{HOST}:{server.port}/0"
    try:
        with connect(url) as client, pytest.raises(ConfigError) as refusal, permitted(url):
            world = World(client)
            check_memory(client, world.config)
    finally:
        server.kill()
    assert "has no permissions to run the" in str(refusal.value)
    assert "docs/kubernetes.md lists" in str(refusal.value)
    assert not [secret for secret in _forms(PASSWORD) if secret in str(refusal.value)]


def test_rights_that_go_while_it_runs_are_waited_for(tmp_path: Path) -> None:
    server = GuardedValkey(tmp_path, documented_rights())
    server.start()
    everybody = connect(f"redis://:{quote(PASSWORD, safe='')}@{HOST}:{server.port}/0")
    try:
        with connect(f"redis://dapod:{quote(PASSWORD, safe='')}@{HOST}:{server.port}/0") as client:
            world = World(client)
            world.resume(0)
            everybody.acl_setuser("dapod", categories=["-@sortedset"])
            with pytest.raises(StoreAway, match="no permissions"):
                world.lease("a", 0, 1)
            everybody.acl_setuser("dapod", categories=["+@sortedset"])
            assert world.lease("a", 0, 1)
    finally:
        everybody.close()
        server.kill()


@needs_model
def test_a_service_behind_a_password_shows_it_nowhere(port: int, ours: Path) -> None:
    (ops,) = free_ports(1)
    url = documented_url(port, ours / "ca.crt")
    with running(url, ops_port=ops) as process:
        assert process.stderr is not None
        logged = []
        for line in process.stderr:
            logged.append(line)
            if "answering on port" in line:
                break
        pages = {page: _page(ops, page) for page in ("healthz", "readyz", "metrics", "config")}
        command_line = Path(f"/proc/{process.pid}/cmdline").read_text()
        process.terminate()
        logged += process.stderr.readlines()
    assert "dapod_buffer_redis_append_only_ok 1.0" in pages["metrics"]
    for text in (*logged, *pages.values(), command_line):
        assert not [secret for secret in _forms(PASSWORD) if secret in text]


@needs_model
def test_a_wrong_password_ends_the_service_with_status_2(port: int, ours: Path) -> None:
    spoil, sentence = MISTAKES["a wrong password"]
    with running(spoil(documented_url(port, ours / "ca.crt"))) as process:
        _, said = process.communicate(timeout=60)
    assert process.returncode == 2, said
    last = said.splitlines()[-1]
    assert last.startswith("dapod: DAPOD_REDIS_URL=rediss://dapod:***@") and sentence in last
    assert "wr0ngpass" not in said


def _forms(secret: str) -> tuple[str, str]:
    return secret, quote(secret, safe="")


def _page(port: int, name: str) -> str:
    with urllib.request.urlopen(f"http://{HOST}:{port}/{name}", timeout=10) as answer:
        return str(answer.read().decode())
