"""From `python -m services.trainer` to ranks under torchrun, once everything cheap is checked.

A container runs exactly that one command. It becomes torchrun's agent for the ranks of this node;
the agents of several nodes meet on node 0 (`services.trainer.node`). Under a torchrun of yours each
process is a rank at once and none of this happens. Nothing is started again here: one rank that
ends badly ends all ranks of its node, those of the other nodes lose it in their next exchange and
end as well, and whoever started the launchers starts all of them again
(docs/decisions/0008-several-nodes.md).

Exit status: 0 after a finished run and only then, 128 + its number after a signal (a Kubernetes Job
would take 0 for the end of the run), 2 when the user must change something, else the rank's own.
"""

from __future__ import annotations

import ctypes
import logging
import os
import shutil
import signal
import sys
from pathlib import Path

from dapod.config import ConfigError, RunConfig
from dapod.model_files import check_disk, check_model, model_bytes
from dapod.ops import listen
from dapod.policy_store import PolicyStore
from dapod.service import Service
from services.trainer.checkpoint import (
    KEEP,
    MODELS_PER_CHECKPOINT,
    CheckpointStore,
    check_resumable,
)
from services.trainer.node import Node

CHECKPOINTS = "checkpoints"
"""The directory in a run directory."""
_LAUNCHER = "DAPOD_TRAINER_LAUNCHER"
JOIN_SECONDS = 1800
"""How long the agents wait for each other: pods that come late for want of a GPU or an image."""
_PR_SET_PDEATHSIG = 1


def check(service: Service) -> None:
    """Everything that can be refused without torch. Raises `ConfigError`."""
    config, environment = service.config, service.environment
    node = Node.of(environment, config.trainer.ranks)
    check_model(config)
    checkpoints = CheckpointStore(environment.run_dir / CHECKPOINTS)
    latest = checkpoints.latest()
    if latest:
        check_resumable(latest, config, config.trainer.ranks)
    if node.index == 0:
        _check_room(config, checkpoints, PolicyStore(environment.policy_dir))
    _ = environment.buffer_address
    listen(environment.listen_host, environment.ops_port).close()


def _check_room(config: RunConfig, checkpoints: CheckpointStore, policies: PolicyStore) -> None:
    """What a kill left half written is removed before the room is measured: a start that is refused
    is not tried again. On node 0 alone, like all else that is removed."""
    checkpoints.sweep()
    policies.sweep()
    check_disk(config, policies.root)
    _check_checkpoint_room(config, checkpoints.root)


def _check_checkpoint_room(config: RunConfig, directory: Path) -> None:
    """One more checkpoint than is kept must fit while it is being written."""
    there = len(list(directory.glob("step-*")))
    one = MODELS_PER_CHECKPOINT * model_bytes(Path(config.model.path))
    needed = (KEEP + 1 - min(there, KEEP)) * one
    existing = next(p for p in (directory, *directory.resolve().parents) if p.is_dir())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise ConfigError(
            f"{existing} has {free >> 20} MiB free, the trainer's checkpoints take "
            f"{needed >> 20} MiB: free some room or choose another run directory"
        )


def launch(service: Service) -> int:
    """Runs the ranks of this node to their end; returns the exit status."""
    node = Node.of(service.environment, service.config.trainer.ranks)
    _prepare_environment(service.config, node)
    return run_ranks(node, "services.trainer")


def run_ranks(node: Node, module: str) -> int:
    """torchrun's agent of this node: `python -m module` once for each rank."""
    # Imported here because everything that can be refused is refused before torch is loaded.
    import torch
    from torch.distributed import DistError, run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # or DeepSpeed warns that it found no other
    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)
    if node.count > 1:
        _say(f"node {node.index} waits for all {node.count} to meet at {_place(node)}")
    try:
        run.run(run.parse_args(_arguments(node, module)))
    except SignalException as error:
        return 128 + error.sigval
    except ChildFailedError as error:
        return _status([failure.exitcode for failure in error.failures.values()])
    except DistError as error:
        _say(f"no meeting of {node.count} nodes at {_place(node)} in {JOIN_SECONDS} s: {error}")
        return 1
    return 0


def _say(sentence: str) -> None:
    """The launcher has nothing else to say, and what it says is no trouble of the user's."""
    print(f"dapod: {sentence}", file=sys.stderr, flush=True)


def _place(node: Node) -> str:
    host, port = node.master
    return f"{host}:{port}"


def _arguments(node: Node, module: str) -> list[str]:
    host, port = node.master
    return [
        f"--nnodes={node.count}",
        f"--node-rank={node.index}",
        f"--nproc-per-node={node.ranks}",
        "--rdzv-backend=static",
        f"--rdzv-conf=timeout={JOIN_SECONDS}",
        f"--master-addr={host}",
        f"--master-port={port}",
        "--max-restarts=0",
        "-m",
        module,
    ]


def _status(codes: list[int]) -> int:
    """2 if any rank refused what the user gave; else the first failure's, signals as a shell shows
    them."""
    if 2 in codes:
        return 2
    return codes[0] if codes[0] > 0 else 128 - codes[0]


def _prepare_environment(config: RunConfig, node: Node) -> None:
    trainer = config.trainer
    if trainer.threads or node.ranks > 1:
        # Ranks that each take every core spin against each other; torchrun's own answer is one
        # thread.
        threads = trainer.threads or max(1, len(os.sched_getaffinity(0)) // node.ranks)
        os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    # Everything is on disk already; a lookup on a hub would only be a way to hang.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ[_LAUNCHER] = str(os.getpid())


def die_with_launcher() -> None:
    """A rank must not outlive its launcher, however that one ends (Linux)."""
    launcher = os.environ.get(_LAUNCHER)
    if launcher is None:
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(launcher):
        sys.exit("the launcher was gone before this rank had started")
