"""Starts the reward service: `python -m services.reward`, environment in `dapod.environment`.

The pool comes first and gRPC only once a worker is warm, so nobody is answered before somebody
can judge. SIGTERM: refuse new calls, let running ones finish, kill the workers, exit 0.
"""

import logging

from dapod.config import ConfigError
from dapod.health import Health
from dapod.rpc import RpcServer
from dapod.service import Service, main
from dapod.v1 import reward_pb2_grpc
from services.reward.metrics import RewardMetrics
from services.reward.pool import VerifierPool
from services.reward.server import RewardServicer

THREADS = 64  # one for each Score call under way; they only wait
DRAIN_SECONDS = 10.0
LOOK_UP_SECONDS = 0.5

logger = logging.getLogger("dapod.reward")


def serve(service: Service) -> None:
    settings = service.config.reward
    metrics = RewardMetrics(service.registry)
    with VerifierPool(
        verifiers=service.config.verifiers,
        workers=settings.workers,
        deadline_seconds=settings.deadline_seconds,
        memory_bytes=settings.memory_mib * 1024 * 1024,
        metrics=metrics,
    ) as pool:
        _wait_for_a_worker(service, pool)
        if service.stop.is_set():
            return
        servicer = RewardServicer(pool=pool, config=service.config, metrics=metrics)
        _answer_until_stopped(service, pool, servicer)


def _answer_until_stopped(service: Service, pool: VerifierPool, servicer: RewardServicer) -> None:
    server = RpcServer(threads=THREADS, tls=service.tls)
    reward_pb2_grpc.add_RewardServiceServicer_to_server(servicer, server.grpc)
    environment = service.environment
    port = server.start(environment.listen_host, environment.grpc_port, environment.health_port)
    logger.info("answering on port %d with %d workers", port, pool.workers)
    while not service.stop.wait(LOOK_UP_SECONDS):
        report(service.health, pool)
    service.health.waiting("stopping")
    server.stop(DRAIN_SECONDS)


def _wait_for_a_worker(service: Service, pool: VerifierPool) -> None:
    """ConfigError when none will come: only a worker knows what loads."""
    while not service.stop.is_set() and not pool.wait_until_warm(LOOK_UP_SECONDS, workers=1):
        if pool.refusal:
            evaluates = service.config.evaluation is not None
            which = "data.verifier or evaluation.data.verifier" if evaluates else "data.verifier"
            raise ConfigError(f"{which} = {pool.refusal}")
        report(service.health, pool)


def report(health: Health, pool: VerifierPool) -> None:
    """What /readyz says: ready with one warm worker, at less speed."""
    warm = pool.warm
    said = f"{warm} of {pool.workers} verifier workers are warm"
    if warm < pool.workers and pool.waiting_for:
        said = f"{said}: {pool.waiting_for}"
    if warm:
        health.doing(said)
    else:
        health.waiting(said)


if __name__ == "__main__":
    main("reward", serve)
