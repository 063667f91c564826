"""What an evaluation starts, as data: an engine and a pool of verifiers, beside this command."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from dapod.cli.fleet import DEFAULTS, LOOPBACK, ServiceSpec, without_redis
from dapod.cli.guard import python_path
from dapod.cli.ports import choose

MODULES = {"reward": "services.reward", "engine": "services.rollout.serve"}
"""Python modules by name."""


def services(
    modules: Mapping[str, str],
    *,
    config_file: Path,
    run_dir: Path,
    worker_id: str,
    environment: Mapping[str, str],
) -> list[ServiceSpec]:
    """In starting order. Raises `ConfigError` for a port in use."""
    names = list(modules)
    ports, _ = choose({"DAPOD_GRPC_PORT": names, "DAPOD_OPS_PORT": names}, environment)
    grpc, ops = ports["DAPOD_GRPC_PORT"], ports["DAPOD_OPS_PORT"]
    shared = {
        **DEFAULTS,
        **without_redis(environment),
        "PYTHONPATH": python_path(environment),
        "DAPOD_CONFIG": str(config_file),
        "DAPOD_RUN_ID": "evaluation",
        "DAPOD_RUN_DIR": str(run_dir),
        "DAPOD_WORKER_ID": worker_id,
        **LOOPBACK,
    }
    return [
        ServiceSpec(
            name=name,
            command=(sys.executable, "-m", module),
            environment={
                **shared,
                "DAPOD_GRPC_PORT": str(grpc[name]),
                "DAPOD_OPS_PORT": str(ops[name]),
            },
            ops_port=ops[name],
            grpc_port=grpc[name],
        )
        for name, module in modules.items()
    ]
