"""The start and the end of a service process, the same for all four.

`main("buffer", serve)` reads the environment and the config, logs to stderr, starts the ops pages,
calls `serve(service)` and turns what it raises into an exit status: 0 after SIGTERM, 2 for what the
user must change (one sentence), 1 for anything else.
"""

from __future__ import annotations

import logging
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from types import FrameType

from prometheus_client import CollectorRegistry

from dapod import config as configuration
from dapod.config import ConfigError, RunConfig
from dapod.environment import Environment
from dapod.health import Health
from dapod.ops import OpsServer, build_app
from dapod.tls import Tls


@dataclass(frozen=True, kw_only=True)
class Service:
    """What every service is given."""

    name: str
    config: RunConfig
    environment: Environment
    health: Health
    registry: CollectorRegistry
    stop: threading.Event
    """Set by SIGTERM and SIGINT: finish what is in hand and return from `serve`."""
    run_id: str
    config_digest: str = field(default="")
    tls: Tls | None = None
    """None: gRPC in plaintext."""


def main(
    name: str,
    serve: Callable[[Service], None],
    *,
    extra_registries: Sequence[CollectorRegistry] = (),
    serves_ops: bool = True,
) -> None:
    """Runs a service until it returns or is told to stop; exits the process.

    Without `serves_ops` it binds no port: a trainer rank beside its node's first.
    """
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
    )
    try:
        service = build(name, Environment.from_os())
        _stop_on_signals(service)
        with _ops(service, extra_registries) if serves_ops else nullcontext():
            serve(service)
    except ConfigError as error:
        sys.exit(refuse(str(error)))


def _ops(service: Service, extra_registries: Sequence[CollectorRegistry]) -> OpsServer:
    app = build_app(
        health=service.health,
        config=service.config,
        registries=[service.registry, *extra_registries],
    )
    return OpsServer(app, service.environment.listen_host, service.environment.ops_port)


def refuse(sentence: str) -> int:
    """Says what the user must change; returns the exit status for it."""
    print(f"dapod: {sentence}", file=sys.stderr, flush=True)
    return 2


def build(name: str, environment: Environment) -> Service:
    """Reads the config and the certificate the environment names. Raises `ConfigError`."""
    config = configuration.load(environment.config_path)
    tls_dir = environment.tls_dir
    return Service(
        name=name,
        config=config,
        environment=environment,
        health=Health(),
        registry=CollectorRegistry(),
        stop=threading.Event(),
        run_id=environment.run_id(config.run.name),
        config_digest=config.digest(),
        tls=None if tls_dir is None else Tls(tls_dir),
    )


def _stop_on_signals(service: Service) -> None:
    def stop(number: int, _: FrameType | None) -> None:
        logging.getLogger(f"dapod.{service.name}").info("stopping: %s", signal.Signals(number).name)
        service.stop.set()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
