"""Ports of a run."""

import socket

import pytest

from dapod.cli.ports import consecutive_ports, free_ports, is_free
from dapod.config import ConfigError


def test_free_ports_are_different_and_not_ephemeral() -> None:
    ports = free_ports(12)
    assert len(set(ports)) == 12
    assert max(ports) < 32_768


def test_a_bound_port_is_not_free() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert not is_free(taken.getsockname()[1])


def test_consecutive_ports_begin_where_asked() -> None:
    first = free_ports(1)[0]
    assert consecutive_ports("DAPOD_GRPC_PORT", str(first), ["buffer"]) == [first]


@pytest.mark.parametrize("value", ["http", "0", "-1", "65536"])
def test_what_is_no_port_is_refused(value: str) -> None:
    with pytest.raises(ConfigError, match=f"DAPOD_OPS_PORT={value} is not a port number"):
        consecutive_ports("DAPOD_OPS_PORT", value, ["buffer"])
