"""One policy that never changes, behind RolloutService: `python -m services.rollout.serve`.

What `dapod evaluate` starts: no buffer, no leases, no reward. The model is the config's; a policy
of a run is verified against its manifest first. RolloutService answers on loopback from the start
and refuses while the engine starts. A dead engine ends the process. SIGTERM: running requests are
aborted, engine ended, exit 0.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from pathlib import Path

from prometheus_client import REGISTRY

from dapod.config import ConfigError
from dapod.model_files import check_model
from dapod.policy_store import PolicyCorrupt, PolicyMissing
from dapod.service import Service, main
from services.rollout import server, settings
from services.rollout.engine import Engine
from services.rollout.policies import VerifiedPolicy, verify_fixed
from services.rollout.process import as_event, make_engine

CHECK_SECONDS = 1.0

log = logging.getLogger("dapod.rollout")


def serve(service: Service) -> None:
    check_model(service.config)
    settings.set_environment(os.environ, service.config, cpu=settings.is_cpu_build())
    asyncio.run(_serve(service))


async def _serve(service: Service) -> None:
    engine = make_engine(service)
    try:
        await answer(service, engine)
    finally:
        await engine.stop()


async def answer(service: Service, engine: Engine) -> None:
    """Until SIGTERM. Raises `EngineFailed`, or `ConfigError` for files that cannot be loaded."""
    stopped = as_event(service.stop)
    servicer = server.RolloutServicer(
        engine=engine,
        config=service.config,
        worker_id=service.environment.worker_id,
        health=service.health,
        groups_in_flight=lambda: 0,
    )
    listening, _ = await server.start(servicer, service.environment.grpc_port, service.tls)
    working = asyncio.create_task(_load_and_watch(service, engine))
    stopping = asyncio.create_task(stopped.wait())
    try:
        await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
    finally:
        service.health.waiting("stopping")
        for task in (working, stopping):
            task.cancel()
        await asyncio.gather(working, stopping, return_exceptions=True)
        await listening.stop(grace=0)


async def _load_and_watch(service: Service, engine: Engine) -> None:
    """Never returns: it ends by being cancelled, or by raising."""
    verified = await _verify(service)
    service.health.waiting(f"starting the engine with {verified.policy}")
    started = time.monotonic()
    await engine.load(verified)
    log.info("%s is loaded after %.1f s", verified.directory, time.monotonic() - started)
    service.health.doing(f"answering with {verified.policy}")
    while True:
        engine.check()
        await asyncio.sleep(CHECK_SECONDS)


async def _verify(service: Service) -> VerifiedPolicy:
    directory = Path(service.config.model.path)
    service.health.waiting(f"verifying {directory}")
    try:
        return await asyncio.to_thread(verify_fixed, directory)
    except (PolicyMissing, PolicyCorrupt) as error:
        raise ConfigError(f"model.path: {error}; choose another policy") from error


if __name__ == "__main__":
    main("rollout", serve, extra_registries=[REGISTRY])
