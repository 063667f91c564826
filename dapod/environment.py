"""Where a service listens and finds the others: environment variables, in every deployment.

| variable | meaning |
|---|---|
| DAPOD_CONFIG | the run's TOML file |
| DAPOD_RUN_ID | names the run in Redis; default: the config's run.name |
| DAPOD_RUN_DIR | where the trainer leaves results, checkpoints and (by default) policies |
| DAPOD_POLICY_DIR | the policy store on shared storage; default: DAPOD_RUN_DIR/policies |
| DAPOD_REDIS_URL | redis://, rediss:// or unix:// of the buffer's state |
| DAPOD_BUFFER_ADDRESS, DAPOD_REWARD_ADDRESS | host:port or dns:///name:port |
| DAPOD_GRPC_PORT, DAPOD_OPS_PORT | where this service listens |
| DAPOD_TLS_DIR | holds tls.crt, tls.key and ca.crt: gRPC over mutual TLS; default: plaintext |
| DAPOD_HEALTH_PORT | gRPC's health service alone, always in plaintext; default: none |
| DAPOD_LISTEN_HOST | the address to bind; default 127.0.0.1, in containers 0.0.0.0 |
| DAPOD_WORKER_ID | a rollout's name; default: the host name |
| DAPOD_TRAINER_NODES | on how many nodes the trainer's ranks are; default 1 |
| DAPOD_TRAINER_NODE | which of them this is, counted from 0 |
| DAPOD_TRAINER_MASTER | host:port on node 0, where several nodes meet |
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dapod.config import ConfigError


@dataclass(frozen=True, kw_only=True)
class Environment:
    """The variables of the table above. A missing one is an error only where it is asked for."""

    variables: Mapping[str, str]

    @classmethod
    def from_os(cls) -> Environment:
        return cls(variables=dict(os.environ))

    def _required(self, name: str) -> str:
        value = self.variables.get(name, "")
        if not value:
            raise ConfigError(f"the environment variable {name} is not set")
        return value

    def _port(self, name: str) -> int:
        value = self._required(name)
        if not value.isdecimal() or not 0 <= int(value) < 65536:
            raise ConfigError(f"{name}={value} is not a port number")
        return int(value)

    def _number(self, name: str, default: str) -> int:
        value = self.variables.get(name) or default
        if not value.isdecimal():
            raise ConfigError(f"{name}={value} is not a number")
        return int(value)

    @property
    def config_path(self) -> Path:
        return Path(self._required("DAPOD_CONFIG"))

    def run_id(self, default: str) -> str:
        return self.variables.get("DAPOD_RUN_ID") or default

    @property
    def run_dir(self) -> Path:
        return Path(self._required("DAPOD_RUN_DIR"))

    @property
    def policy_dir(self) -> Path:
        given = self.variables.get("DAPOD_POLICY_DIR")
        return Path(given) if given else self.run_dir / "policies"

    @property
    def redis_url(self) -> str:
        return self._required("DAPOD_REDIS_URL")

    @property
    def buffer_address(self) -> str:
        return self._required("DAPOD_BUFFER_ADDRESS")

    @property
    def reward_address(self) -> str:
        return self._required("DAPOD_REWARD_ADDRESS")

    @property
    def grpc_port(self) -> int:
        return self._port("DAPOD_GRPC_PORT")

    @property
    def optional_grpc_port(self) -> int | None:
        """For the rollout, whose gRPC service is for debugging only; unset means off."""
        return self.grpc_port if self.variables.get("DAPOD_GRPC_PORT") else None

    @property
    def health_port(self) -> int | None:
        """Unset means none."""
        return self._port("DAPOD_HEALTH_PORT") if self.variables.get("DAPOD_HEALTH_PORT") else None

    @property
    def tls_dir(self) -> Path | None:
        """Unset means plaintext."""
        given = self.variables.get("DAPOD_TLS_DIR")
        return Path(given) if given else None

    @property
    def ops_port(self) -> int:
        return self._port("DAPOD_OPS_PORT")

    @property
    def listen_host(self) -> str:
        return self.variables.get("DAPOD_LISTEN_HOST") or "127.0.0.1"

    @property
    def worker_id(self) -> str:
        return self.variables.get("DAPOD_WORKER_ID") or socket.gethostname()

    @property
    def trainer_nodes(self) -> int:
        return self._number("DAPOD_TRAINER_NODES", "1")

    @property
    def trainer_node(self) -> int:
        return self._number("DAPOD_TRAINER_NODE", "0")

    @property
    def trainer_master(self) -> tuple[str, int]:
        """Host and port."""
        address = self._required("DAPOD_TRAINER_MASTER")
        host, _, port = address.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise ConfigError(f"DAPOD_TRAINER_MASTER={address} is not host:port")
        return host, int(port)
