"""One rank of the trainer: what it is made of, and how it begins and ends."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import deepspeed
import torch
import torch.distributed as dist
import transformers
from prometheus_client import CollectorRegistry

from dapod.config import ConfigError
from dapod.model_files import model_bytes
from dapod.policy_store import PolicyStore
from dapod.rpc import channel
from dapod.service import Service
from dapod.v1.buffer_pb2_grpc import BufferServiceStub
from dapod.v1.types_pb2 import RunIdentity
from services.trainer.checkpoint import CheckpointStore
from services.trainer.evaluations import Evaluations
from services.trainer.launch import CHECKPOINTS
from services.trainer.metrics import TrainerMetrics
from services.trainer.phases import Phases, longer
from services.trainer.policy import Policy
from services.trainer.ranks import TIMEOUT, Ranks
from services.trainer.reference import load_reference
from services.trainer.source import Source
from services.trainer.steps import StepLog
from services.trainer.stopped import Stopped
from services.trainer.train import Trainer
from services.trainer.updates import Updates

log = logging.getLogger("dapod.trainer")


def serve(service: Service) -> None:
    """Trains until the run is finished or the process is told to stop."""
    _quieten()
    _join(service.config.trainer.threads)
    with channel(service.environment.buffer_address, service.tls) as buffer:
        try:
            _wire(service, BufferServiceStub(buffer)).run()
        except Stopped:
            log.info("stopped; the ledger hands the step out again")
        except Exception:
            # Told to stop, the ranks leave one after the other; those in a collective see it break.
            if not service.stop.is_set():
                raise
            log.info("stopped while other ranks were leaving", exc_info=True)
    dist.destroy_process_group()


def _wire(service: Service, stub: BufferServiceStub) -> Trainer:
    config, environment = service.config, service.environment
    service.health.waiting("loading the model")
    ranks = Ranks()
    # Other nodes' pages show no metrics: Prometheus would take each node for a trainer.
    metrics = TrainerMetrics(service.registry if ranks.leads else CollectorRegistry())
    follows = 0.0 if ranks.leads else TIMEOUT.total_seconds()
    phases = Phases(
        metrics,
        service.health.heartbeat,
        longer(model_bytes(Path(config.model.path)), follows=follows),
    )
    policy = Policy(config, ranks)
    run = RunIdentity(run_id=service.run_id, config_digest=service.config_digest)
    source = Source(stub, run, service.health, service.stop)
    return Trainer(
        config=config,
        ranks=ranks,
        policy=policy,
        updates=Updates(
            config=config,
            policy=policy,
            reference=load_reference(config, ranks),
            ranks=ranks,
            phases=phases,
            metrics=metrics,
            stop=service.stop,
        ),
        source=source,
        policies=PolicyStore(environment.policy_dir),
        checkpoints=CheckpointStore(environment.run_dir / CHECKPOINTS),
        steps=_step_log(environment.run_dir),
        evaluations=Evaluations(
            config=config,
            run_dir=environment.run_dir,
            source=source,
            metrics=metrics,
        ),
        phases=phases,
        metrics=metrics,
        health=service.health,
    )


def _step_log(run_dir: Path) -> StepLog:
    run_dir.mkdir(parents=True, exist_ok=True)
    return StepLog(run_dir)


def _join(threads: int) -> None:
    """Joins the other ranks; one GPU each where there are any."""
    if threads:
        torch.set_num_threads(threads)
    backend = "gloo"
    if torch.cuda.is_available():
        rank, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if rank >= gpus:
            raise ConfigError(
                f"there are {gpus} GPUs for this node's ranks: lower trainer.ranks or raise "
                f"DAPOD_TRAINER_NODES"
            )
        torch.cuda.set_device(rank)
        backend = "nccl"
    dist.init_process_group(backend, timeout=TIMEOUT)


def _quieten() -> None:
    """The libraries' progress bars and banners are noise in a service's log."""
    deepspeed.utils.logger.setLevel(logging.WARNING)
    transformers.utils.logging.disable_progress_bar()
    if os.environ.get("RANK") != "0":
        log.setLevel(logging.WARNING)
