"""Ports for one run: chosen once, the same after every restart of a service.

Not `bind(0)`: that gives ephemeral ports, which the kernel also hands to outgoing connections.
While a service is dead its clients keep connecting to its port, and one of them may be given that
very port as its own, connect to itself and keep the port from the service that comes back.
"""

import random
import socket
from collections.abc import Collection, Mapping, Sequence
from itertools import combinations
from pathlib import Path

from dapod.config import ConfigError

HOST = "127.0.0.1"
_LOWEST = 15_000
_HIGHEST = 32_000
_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")


def choose(
    wanted: Mapping[str, Sequence[str]], environment: Mapping[str, str], *, more: int = 0
) -> tuple[dict[str, dict[str, int]], list[int]]:
    """For each variable the ports of the services it is for, by name; and `more` ports besides.

    All different: free ones, or consecutive ones from the first that the user set the variable to.
    Raises `ConfigError`.
    """
    asked = {
        variable: consecutive_ports(variable, environment[variable], names)
        for variable, names in wanted.items()
        if environment.get(variable)
    }
    for one, other in combinations(asked, 2):
        both = {*asked[one]} & {*asked[other]}
        if both:
            port = min(both)
            whose = [wanted[v][asked[v].index(port)] for v in (one, other)]
            raise ConfigError(
                f"port {port} is asked for twice, by {one} (of {whose[0]}) and by {other} (of "
                f"{whose[1]}): set one of them to another first port"
            )
    taken = {port for ports in asked.values() for port in ports}
    free = free_ports(sum(map(len, wanted.values())) + more, besides=taken)
    chosen = {
        variable: dict(zip(names, asked.get(variable) or _take(free, len(names)), strict=True))
        for variable, names in wanted.items()
    }
    return chosen, _take(free, more)


def _take(ports: list[int], count: int) -> list[int]:
    return [ports.pop() for _ in range(count)]


def free_ports(count: int, *, besides: Collection[int] = ()) -> list[int]:
    """Different free ports below the ephemeral ones, none of `besides`."""
    candidates = list(range(_LOWEST, _ceiling()))
    random.shuffle(candidates)
    chosen: list[int] = []
    for port in candidates:
        if len(chosen) == count:
            return chosen
        if port not in besides and is_free(port):
            chosen.append(port)
    raise ConfigError(f"{count} free ports on {HOST} between {_LOWEST} and {_ceiling()} are needed")


def consecutive_ports(variable: str, value: str, names: Sequence[str]) -> list[int]:
    """Ports the user asked for by naming the first. Raises `ConfigError` when one is in use."""
    if not value.isdecimal() or not 0 < int(value) <= 65536 - len(names):
        raise ConfigError(f"{variable}={value} is not a port number")
    ports = [int(value) + index for index in range(len(names))]
    for port, name in zip(ports, names, strict=True):
        if not is_free(port):
            raise ConfigError(
                f"port {port} (of {name}, from {variable}={value}) is in use: free it, "
                f"or set {variable} to another first port"
            )
    return ports


def is_free(port: int) -> bool:
    """Whether a server could listen on `port` now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True


def _ceiling() -> int:
    try:
        return max(_LOWEST + 1000, min(_HIGHEST, int(_EPHEMERAL.read_text().split()[0])))
    except (OSError, ValueError, IndexError):
        return _HIGHEST
