"""Starts the buffer service: `python -m services.buffer`, environment in `dapod.environment`.

Everything that can be wrong with config, data or Redis is said before the port opens. Afterwards
Redis may go away and come back: calls are answered UNAVAILABLE meanwhile, and /readyz says why.
"""

from __future__ import annotations

import logging

from dapod.redis_url import masked
from dapod.rpc import RpcServer
from dapod.service import Service, main
from dapod.v1 import buffer_pb2_grpc
from services.buffer.connection import check_memory, check_version, connect, permitted
from services.buffer.metrics import BufferMetrics, StateCollector
from services.buffer.problems import Problems, load_problems
from services.buffer.prompts import Prompts, load_prompts
from services.buffer.scripts import Scripts, StoreAway
from services.buffer.server import BufferServicer
from services.buffer.store import Store

THREADS = 32
"""Calls answered at once; a trainer's NextBatch holds one."""
DRAIN_SECONDS = 5.0
LOOK_UP_SECONDS = 1.0

log = logging.getLogger("dapod.buffer")


def serve(service: Service) -> None:
    service.health.waiting(f"reading the data set {service.config.data.path}")
    prompts = load_prompts(service.config)
    problems = load_problems(service.config)
    url = service.environment.redis_url
    service.health.waiting(f"waiting for Redis at {masked(url)}")
    client = connect(url, stop=service.stop)
    with permitted(url):
        check_version(client, url)
        check_memory(client, service.config)
    scripts = Scripts(
        client=client, run_id=service.run_id, config=service.config, problems=problems
    )
    store = Store(scripts=scripts, prompts=prompts, config=service.config)
    with permitted(url):
        store.start(service.config_digest)
    server = _server(service, store, prompts, problems)
    service.registry.register(_collector(store, service))
    environment = service.environment
    port = server.start(environment.listen_host, environment.grpc_port, environment.health_port)
    log.info("answering on port %d: %d prompts, run %s", port, len(prompts), service.run_id)
    while not service.stop.is_set():
        _report(service, store, prompts)
        service.stop.wait(LOOK_UP_SECONDS)
    service.health.waiting("stopping")
    server.stop(DRAIN_SECONDS)


def _server(
    service: Service, store: Store, prompts: Prompts, problems: Problems | None
) -> RpcServer:
    server = RpcServer(threads=THREADS, tls=service.tls)
    servicer = BufferServicer(
        store=store,
        prompts=prompts,
        config=service.config,
        run_id=service.run_id,
        metrics=BufferMetrics(service.registry),
        stop=service.stop,
        problems=problems,
    )
    buffer_pb2_grpc.add_BufferServiceServicer_to_server(servicer, server.grpc)
    return server


def _collector(store: Store, service: Service) -> StateCollector:
    return StateCollector(
        counts=store.counts,
        server=store.server,
        max_staleness=service.config.algorithm.max_staleness,
    )


def _report(service: Service, store: Store, prompts: Prompts) -> None:
    try:
        store.ping()
        service.health.doing(
            f"serving {len(prompts)} prompts of run {service.run_id} ({prompts.counts})"
        )
    except StoreAway as error:
        service.health.waiting(str(error))


if __name__ == "__main__":
    main("buffer", serve)
