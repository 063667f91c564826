"""The processes of a run, as data."""

from pathlib import Path

import pytest

from dapod.cli.fleet import FleetPlan, ServiceSpec, fleet
from dapod.cli.ports import free_ports
from dapod.environment import Environment


def specs(environment: dict[str, str], **changes: object) -> dict[str, ServiceSpec]:
    plan = {"run_dir": Path("/runs/a"), "run_id": "a-1", "rollouts": 1, "redis_url": None}
    made = fleet(FleetPlan(**{**plan, **changes}, environment=environment))
    return {spec.name: spec for spec in made}


def test_valkey_comes_first_and_the_trainer_last() -> None:
    assert list(specs({})) == ["valkey", "buffer", "reward", "rollout", "trainer"]


def test_several_rollouts_are_numbered_and_know_their_names() -> None:
    made = specs({}, rollouts=2)
    assert list(made)[3:5] == ["rollout-1", "rollout-2"]
    assert Environment(variables=made["rollout-2"].environment).worker_id == "rollout-2"
    assert made["rollout-2"].command[-2:] == ("-m", "services.rollout")


def test_a_redis_of_the_users_replaces_the_embedded_one() -> None:
    made = specs({}, redis_url="redis://elsewhere:6379")
    assert "valkey" not in made
    buffer = Environment(variables=made["buffer"].environment)
    assert buffer.redis_url == "redis://elsewhere:6379"


def test_everybody_finds_everybody_on_ports_of_their_own() -> None:
    made = specs({}, rollouts=3)
    ports = [port for spec in made.values() for port in (spec.ops_port, spec.grpc_port) if port]
    assert len(ports) == len(set(ports))
    trainer = Environment(variables=made["trainer"].environment)
    assert trainer.buffer_address == f"127.0.0.1:{made['buffer'].grpc_port}"
    assert trainer.run_dir == Path("/runs/a")
    assert trainer.policy_dir == Path("/runs/a/policies")


def test_what_the_user_has_set_is_kept() -> None:
    made = specs({"OMP_WAIT_POLICY": "ACTIVE", "PATH": "/bin"})
    environment = made["rollout"].environment
    assert environment["OMP_WAIT_POLICY"] == "ACTIVE"
    assert environment["KMP_BLOCKTIME"] == "0"
    assert environment["PATH"] == "/bin"


def test_a_deployments_certificate_is_left_alone_on_loopback() -> None:
    made = specs({"DAPOD_TLS_DIR": "/dapod/tls", "DAPOD_HEALTH_PORT": "50052"})
    buffer = Environment(variables=made["buffer"].environment)
    assert buffer.tls_dir is None and buffer.health_port is None


def test_ops_ports_begin_where_the_user_says() -> None:
    first = free_ports(1)[0]
    made = specs({"DAPOD_OPS_PORT": str(first)})
    assert [spec.ops_port for spec in made.values()][1:] == list(range(first, first + 4))


@pytest.mark.parametrize(("earlier", "later"), [("rollout", "buffer"), ("buffer", "valkey")])
def test_who_is_needed_by_others_stops_after_them(earlier: str, later: str) -> None:
    made = specs({})
    assert made[earlier].stop_order < made[later].stop_order
