"""From `python -m services.trainer` to ranks under torchrun, once everything cheap is checked.

A container runs exactly that one command. It becomes torchrun's agent for the ranks of this node;
under a torchrun that is already there (several nodes) each process is a rank at once and none of
this happens. Exit status: 0 after a finished run and only then, 128 + its number after a signal
(a Kubernetes Job would take 0 for the end of the run), 2 when the user must change something, else
the rank's own.
"""

from __future__ import annotations

import ctypes
import logging
import os
import shutil
import signal
import socket
import sys
from pathlib import Path

from dapod.config import ConfigError, RunConfig
from dapod.model_files import check_disk, check_model
from dapod.ops import listen
from dapod.service import Service
from services.trainer.checkpoint import KEEP, CheckpointStore, check_resumable

CHECKPOINTS = "checkpoints"
"""The directory in a run directory."""
_LAUNCHER = "DAPOD_TRAINER_LAUNCHER"
_PR_SET_PDEATHSIG = 1
_CHECKPOINT_PER_MODEL = 7
"""bf16 weights, fp32 master weights and two fp32 moments, in units of the bf16 weights."""


def check(service: Service) -> None:
    """Everything that can be refused without torch. Raises `ConfigError`."""
    config, environment = service.config, service.environment
    check_model(config)
    check_disk(config, environment.policy_dir)
    checkpoints = environment.run_dir / CHECKPOINTS
    latest = CheckpointStore(checkpoints).latest()
    if latest:
        check_resumable(latest, config, config.trainer.ranks)
    _check_checkpoint_room(config, checkpoints)
    _ = environment.buffer_address
    listen(environment.listen_host, environment.ops_port).close()


def _check_checkpoint_room(config: RunConfig, directory: Path) -> None:
    """One more checkpoint than is kept must fit while it is being written."""
    model = sum(f.stat().st_size for f in Path(config.model.path).glob("*.safetensors"))
    there = len(list(directory.glob("step-*")))
    needed = (KEEP + 1 - min(there, KEEP)) * _CHECKPOINT_PER_MODEL * model
    existing = next(p for p in (directory, *directory.resolve().parents) if p.is_dir())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise ConfigError(
            f"{existing} has {free >> 20} MiB free, the trainer's checkpoints take "
            f"{needed >> 20} MiB: free some room or choose another run directory"
        )


def launch(service: Service) -> int:
    """Runs the ranks of this node to their end; returns the exit status."""
    _prepare_environment(service.config)
    # Imported here because everything that can be refused is refused before torch is loaded.
    import torch
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # or DeepSpeed warns that it found no other
    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)
    try:
        run.run(run.parse_args(_arguments(service.config.trainer.ranks)))
    except SignalException as error:
        return 128 + error.sigval
    except ChildFailedError as error:
        return _status([failure.exitcode for failure in error.failures.values()])
    return 0


def _arguments(ranks: int) -> list[str]:
    return [
        "--nnodes=1",
        f"--nproc-per-node={ranks}",
        "--rdzv-backend=static",
        "--master-addr=127.0.0.1",
        f"--master-port={_free_port()}",
        "--max-restarts=0",
        "-m",
        "services.trainer",
    ]


def _status(codes: list[int]) -> int:
    """2 if any rank refused what the user gave; else the first failure's, signals as a shell shows
    them."""
    if 2 in codes:
        return 2
    return codes[0] if codes[0] > 0 else 128 - codes[0]


def _prepare_environment(config: RunConfig) -> None:
    trainer = config.trainer
    if trainer.threads or trainer.ranks > 1:
        # Ranks that each take every core spin against each other; torchrun's own answer is one
        # thread.
        threads = trainer.threads or max(1, len(os.sched_getaffinity(0)) // trainer.ranks)
        os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    # Everything is on disk already; a lookup on a hub would only be a way to hang.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ[_LAUNCHER] = str(os.getpid())


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def die_with_launcher() -> None:
    """A rank must not outlive its launcher, however that one ends (Linux)."""
    launcher = os.environ.get(_LAUNCHER)
    if launcher is None:
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(launcher):
        sys.exit("the launcher was gone before this rank had started")
