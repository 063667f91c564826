"""Asking services what they do, over a real ops server."""

from pathlib import Path

from prometheus_client import CollectorRegistry

from dapod.cli.ports import free_ports
from dapod.cli.readiness import ReadinessPoll, ask
from dapod.config import load
from dapod.health import Health
from dapod.ops import OpsServer, build_app
from tests.cli.waiting import wait_until


def test_a_service_that_waits_says_for_what(config_file: Path) -> None:
    health = Health()
    app = build_app(health=health, config=load(config_file), registries=[CollectorRegistry()])
    with OpsServer(app, "127.0.0.1", 0) as server:
        health.waiting("starting vLLM")
        answer = ask(server.port)
        assert answer is not None
        assert (answer.ready, answer.activity) == (False, "starting vLLM")
        with ReadinessPoll({"rollout": server.port}) as poll:
            health.doing("sampling")
            wait_until(lambda: "rollout" in poll.latest(), "an answer")
            assert poll.latest()["rollout"].ready


def test_a_service_that_is_not_there_says_nothing() -> None:
    assert ask(free_ports(1)[0]) is None
