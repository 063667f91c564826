"""Everything that can be wrong before anything heavy starts, each with one sentence.

Looks and connects, writes nothing. The config itself is checked where it is read.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dapod.cli import inputs, redis_ping, run_dir
from dapod.cli.fleet import FleetPlan, ServiceSpec, fleet
from dapod.cli.run_dir import RunDirectory
from dapod.config import RunConfig
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
