"""The ops pages of a service, over real HTTP on loopback."""

import json
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Counter

from dapod import config as configuration
from dapod.config import ConfigError
from dapod.health import Health
from dapod.heartbeat import Heartbeat
from dapod.ops import OpsServer, build_app
from tests.virtual_clock import Clock

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.toml"


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def health(clock):
    return Health(Heartbeat(clock))


@pytest.fixture
def server(health):
    registry = CollectorRegistry()
    Counter("dapod_test_things_total", "Things.", registry=registry).inc()
    app = build_app(health=health, config=configuration.load(QUICKSTART), registries=[registry])
    with OpsServer(app, "127.0.0.1", 0) as server:
        yield server


def get(server: OpsServer, page: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}{page}", timeout=5) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_a_living_service_is_healthy_even_when_it_is_not_ready(server, health):
    health.waiting("the buffer is away")
    assert get(server, "/healthz")[0] == 200


def test_a_loop_that_breaks_its_promise_is_not_alive_until_it_beats_again(server, health, clock):
    health.doing("training step 4")
    clock.now = 1e9
    assert get(server, "/healthz")[0] == 200, "nothing was promised yet"
    health.heartbeat.beat(within=900)
    clock.now += 900
    assert get(server, "/healthz") == (200, '{"alive":true}')
    clock.now += 5
    code, body = get(server, "/healthz")
    assert code == 503
    said = {"alive": False, "overdue_seconds": 5.0, "activity": "training step 4"}
    assert json.loads(body) == said
    health.heartbeat.beat(within=1)
    assert get(server, "/healthz")[0] == 200


def test_readiness_comes_with_the_reason(server, health):
    health.waiting("the buffer is away")
    code, body = get(server, "/readyz")
    assert code == 503 and json.loads(body)["activity"] == "the buffer is away"
    health.doing("sampling")
    code, body = get(server, "/readyz")
    assert code == 200 and json.loads(body)["activity"] == "sampling"


def test_metrics_and_config_are_shown(server):
    assert "dapod_test_things_total 1.0" in get(server, "/metrics")[1]
    assert json.loads(get(server, "/config")[1])["run"]["name"] == "quickstart"


def test_a_port_in_use_is_one_sentence(server, health):
    app = build_app(health=health, config=configuration.load(QUICKSTART), registries=[])
    with pytest.raises(ConfigError, match="DAPOD_OPS_PORT"):
        OpsServer(app, "127.0.0.1", server.port)
