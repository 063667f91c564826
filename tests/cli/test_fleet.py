"""The processes of a run, as data."""

from pathlib import Path
from urllib.parse import urlsplit

import pytest

from dapod.cli import ports
from dapod.cli.fleet import FleetPlan, ServiceSpec, fleet
from dapod.cli.ports import free_ports, is_free
from dapod.config import ConfigError
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


def test_the_password_of_redis_is_given_to_the_buffer_alone() -> None:
    url = "redis://:secret@elsewhere:6379"
    for made in (specs({"DAPOD_REDIS_URL": url}, redis_url=url), specs({"DAPOD_REDIS_URL": url})):
        for name, spec in made.items():
            knows = "secret" in " ".join((*spec.command, *spec.environment.values()))
            assert knows == (name == "buffer" and "valkey" not in made), name


def test_everybody_finds_everybody_on_ports_of_their_own() -> None:
    made = specs({}, rollouts=3)
    used = [port for spec in made.values() for port in (spec.ops_port, spec.grpc_port) if port]
    assert len(used) == len(set(used))
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


def a_free_range(count: int) -> int:
    """The first of `count` ports that are free, one after the other."""
    return next(first for first in free_ports(99) if all(map(is_free, range(first, first + count))))


def test_ranges_of_ports_that_overlap_are_refused_and_both_are_named() -> None:
    first = a_free_range(9)
    asked = {"DAPOD_GRPC_PORT": str(first + 3), "DAPOD_OPS_PORT": str(first)}
    with pytest.raises(ConfigError) as refused:
        specs(asked)
    assert f"port {first + 3} is asked for twice" in str(refused.value)
    assert "DAPOD_GRPC_PORT (of buffer) and by DAPOD_OPS_PORT (of trainer)" in str(refused.value)


def test_ranges_of_ports_side_by_side_are_taken() -> None:
    """The trainer has no gRPC port, so buffer's ops port may follow the rollout's gRPC port."""
    first = a_free_range(9)
    made = specs({"DAPOD_GRPC_PORT": str(first), "DAPOD_OPS_PORT": str(first + 3)})
    services = list(made.values())[1:]
    assert [spec.grpc_port for spec in services] == [first, first + 1, first + 2, None]
    assert [spec.ops_port for spec in services] == list(range(first + 3, first + 7))
    assert Environment(variables=made["trainer"].environment).optional_grpc_port is None


def test_no_free_port_is_one_that_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    first = a_free_range(16)
    monkeypatch.setattr(ports, "_LOWEST", first)
    monkeypatch.setattr(ports, "_ceiling", lambda: first + 16)
    for _ in range(5):
        made = specs({"DAPOD_OPS_PORT": str(first)})
        used = [port for spec in made.values() for port in (spec.ops_port, spec.grpc_port) if port]
        valkey = urlsplit(Environment(variables=made["buffer"].environment).redis_url)
        assert len({*used, valkey.port}) == len(used) + 1 == 8


@pytest.mark.parametrize(("earlier", "later"), [("rollout", "buffer"), ("buffer", "valkey")])
def test_who_is_needed_by_others_stops_after_them(earlier: str, later: str) -> None:
    made = specs({})
    assert made[earlier].stop_order < made[later].stop_order
