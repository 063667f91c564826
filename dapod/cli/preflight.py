"""Everything that can be wrong before anything heavy starts, each with one sentence.

Looks and connects, writes nothing. The config itself is checked where it is read.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dapod.cli import inputs, redis_ping, run_dir
from dapod.cli.fleet import FleetPlan, ServiceSpec, fleet
from dapod.cli.run_dir import RunDirectory
from dapod.config import ConfigError, RunConfig
from dapod.model_files import check_disk
from dapod.redis_url import masked

EMBEDDED = "embedded"
"""In run.json: the run's state is in its own Valkey."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What `dapod run` was asked for."""

    config_file: Path
    config: RunConfig
    rollouts: int
    run_dir: Path | None
    resume: bool
    redis_url: str | None
    environment: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A run that may start."""

    config: RunConfig
    directory: RunDirectory
    specs: list[ServiceSpec]
    redis: str
    """The redis URL as it may be shown, or `EMBEDDED`."""
    data: str
    """Where the rows are from and how many are kept, in words."""


def prepare(request: Request) -> Prepared:
    """Raises `ConfigError` for the first thing that cannot work."""
    config = request.config
    redis = masked(request.redis_url) if request.redis_url else EMBEDDED
    directory = run_dir.choose(config, given=request.run_dir, resume=request.resume, redis=redis)
    data_set = inputs.check(config)
    run_dir.check_ranks(config, directory.path)
    check_disk(config, directory.path)
    _check_memory(config, request.rollouts)
    if request.redis_url:
        redis_ping.check(request.redis_url)
    plan = FleetPlan(
        run_dir=directory.path,
        run_id=directory.run_id,
        rollouts=request.rollouts,
        redis_url=request.redis_url,
        environment=request.environment,
    )
    return Prepared(
        config=config,
        directory=directory,
        specs=fleet(plan),
        redis=redis,
        data=str(data_set),
    )


def _check_memory(config: RunConfig, rollouts: int) -> None:
    """An engine without room for its cache dies late, and says why in the middle of its log."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    if rollouts * config.rollout.memory_gib > memory:
        raise ConfigError(
            f"rollout.memory_gib = {config.rollout.memory_gib:g} for each of {rollouts} rollout(s) "
            f"is more than the {memory:.0f} GiB of this machine: lower it"
        )
