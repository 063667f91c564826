"""What a run starts, as data: one `ServiceSpec` for each process, with its command and environment.

Nothing is started here. Each spec is what a container would run: the same module, the same
variables.

    valkey ◄── buffer ◄── rollout-1..N ──► reward          (rollout, when there is one)
                  ▲
                  └────── trainer
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dapod.cli import valkey
from dapod.cli.guard import REDIS_URL, python_path
from dapod.cli.ports import HOST, choose

DEFAULTS = {
    # Two OpenMP programs on the same cores spin against each other: overlap then costs more than it
    # earns.
    "OMP_WAIT_POLICY": "PASSIVE",
    "KMP_BLOCKTIME": "0",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "PYTHONUNBUFFERED": "1",
    # vLLM gives its processes titles, by default written over the environment the run finds them
    # by.
    "SPT_NOENV": "1",
}
"""Variables of every process, unless the user has set them."""

LOOPBACK = {"DAPOD_LISTEN_HOST": HOST, "DAPOD_TLS_DIR": "", "DAPOD_HEALTH_PORT": ""}
"""Variables of every process, whatever the user has set: they speak on this machine alone, in
plaintext, and nobody probes them."""


@dataclass(frozen=True, kw_only=True)
class ServiceSpec:
    """One process of a run."""

    name: str
    """Names its log, and is its DAPOD_SERVICE."""
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    """All of it, but for the run's token and the service's name."""
    ops_port: int | None = None
    """Where /readyz is; None for a process that has none."""
    grpc_port: int | None = None
    stop_order: int = 0
    """Services of a lower number have ended before those of a higher one are told to stop."""


@dataclass(frozen=True, kw_only=True)
class FleetPlan:
    """What the specs of a real run are made from."""

    run_dir: Path
    run_id: str
    rollouts: int
    redis_url: str | None
    """None: an embedded Valkey."""
    environment: Mapping[str, str]
    """The user's."""


def fleet(plan: FleetPlan) -> list[ServiceSpec]:
    """The processes of a run, in starting order. Raises `ConfigError` for ports."""
    names = ["buffer", "reward", *rollout_names(plan.rollouts), "trainer"]
    # The trainer only calls: nobody calls it.
    wanted = {"DAPOD_GRPC_PORT": names[:-1], "DAPOD_OPS_PORT": names}
    ports, (valkey_port,) = choose(wanted, plan.environment, more=1)
    grpc, ops = ports["DAPOD_GRPC_PORT"], ports["DAPOD_OPS_PORT"]
    specs = []
    redis_url = plan.redis_url
    if redis_url is None:
        redis_url = valkey.url(valkey_port)
        specs.append(_valkey(plan, valkey_port))
    shared = _shared(plan, grpc)
    for name in names:
        own = {"DAPOD_GRPC_PORT": str(grpc.get(name, "")), "DAPOD_OPS_PORT": str(ops[name])}
        if name == "buffer":
            own[REDIS_URL] = redis_url
        specs.append(
            ServiceSpec(
                name=name,
                command=(sys.executable, "-m", f"services.{name.partition('-')[0]}"),
                environment=shared | own | {"DAPOD_WORKER_ID": name},
                ops_port=ops[name],
                grpc_port=grpc.get(name),
                # Rollouts return their leases and the trainer ends its step while the others still
                # answer.
                stop_order=1 if name in ("buffer", "reward") else 0,
            )
        )
    return specs


def rollout_names(count: int) -> list[str]:
    return ["rollout"] if count == 1 else [f"rollout-{index + 1}" for index in range(count)]


def _valkey(plan: FleetPlan, port: int) -> ServiceSpec:
    return ServiceSpec(
        name="valkey",
        command=valkey.command(port, plan.run_dir / "valkey"),
        environment=without_redis(plan.environment),
        stop_order=2,
    )


def without_redis(environment: Mapping[str, str]) -> dict[str, str]:
    """For processes that have no business with Redis: its password is in the URL."""
    return {name: value for name, value in environment.items() if name != REDIS_URL}


def _shared(plan: FleetPlan, grpc: Mapping[str, int]) -> dict[str, str]:
    return {
        **DEFAULTS,
        **without_redis(plan.environment),
        "PYTHONPATH": python_path(plan.environment),
        "DAPOD_CONFIG": str(plan.run_dir / "config.toml"),
        "DAPOD_RUN_ID": plan.run_id,
        "DAPOD_RUN_DIR": str(plan.run_dir),
        "DAPOD_POLICY_DIR": str(plan.run_dir / "policies"),
        "DAPOD_BUFFER_ADDRESS": f"{HOST}:{grpc['buffer']}",
        "DAPOD_REWARD_ADDRESS": f"{HOST}:{grpc['reward']}",
        **LOOPBACK,
    }
