"""The whole answer for one config on given machines: sizes, seconds, what does not fit and why."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from dapod.config import RunConfig
from dapod.plan.advice import Compute, advice
from dapod.plan.assumptions import Assumptions
from dapod.plan.hardware import Machines
from dapod.plan.model_shape import ModelShape
from dapod.plan.rollout_memory import RolloutMemory, rollout_memory
from dapod.plan.seconds import Decoding, StepSeconds, Work, decoding_of, step_seconds, work_of
from dapod.plan.split import Split, check_shape, split_of
from dapod.plan.storage import Redis, Storage, redis_of, storage_of
from dapod.plan.trainer_memory import GIB, TrainerMemory, trainer_memory

DAY_SECONDS = 86400


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """Everything `dapod plan` shows."""

    config: RunConfig
    shape: ModelShape
    machines: Machines
    assumed: Assumptions
    split: Split
    trainer: TrainerMemory
    rollout: RolloutMemory
    redis: Redis
    storage: Storage
    work: Work
    decoding: Decoding | None
    """None where the engine does not fit."""
    seconds: StepSeconds | None
    refusals: tuple[str, ...]
    """What does not fit, each with what to change."""
    notes: tuple[str, ...]
    """What fits and is still worth knowing."""

    @property
    def steps_per_day(self) -> float:
        return DAY_SECONDS / self.seconds.step if self.seconds else 0.0

    @property
    def written_per_day(self) -> float:
        """To shared storage."""
        return self.steps_per_day * self.storage.publish_bytes

    @property
    def read_per_day(self) -> float:
        """From shared storage: by the trainer for checksums, twice by each rollout."""
        return (1 + 2 * self.split.rollout_replicas) * self.written_per_day


def make_plan(
    config: RunConfig, shape: ModelShape, machines: Machines, assumed: Assumptions
) -> RunPlan:
    """Raises `ConfigError` where trainer or engines have no place at all."""
    check_shape(config, shape)
    split = split_of(config, machines)
    gpu = machines.gpu
    capacity = gpu.memory_bytes * (1 - config.rollout.gpu_memory_ratio if split.shared else 1)
    compute = partial(
        trainer_memory,
        shape=shape,
        capacity_bytes=capacity,
        reserve_bytes=assumed.reserve_gib * GIB,
        nodes=split.trainer_nodes,
    )
    trainer = compute(config)
    rollout = rollout_memory(config, shape, gpu, assumed)
    work = work_of(config, shape, assumed)
    decoding = seconds = None
    if rollout.fits:
        concurrent = max(1, rollout.concurrent_rollouts)
        decoding = decoding_of(concurrent, split.tensor_parallel, shape, gpu, assumed)
        seconds = step_seconds(config, shape, gpu, split, work, decoding, assumed)
    return RunPlan(
        config=config,
        shape=shape,
        machines=machines,
        assumed=assumed,
        split=split,
        trainer=trainer,
        rollout=rollout,
        redis=redis_of(config, assumed),
        storage=storage_of(config, shape),
        work=work,
        decoding=decoding,
        seconds=seconds,
        refusals=tuple(
            said
            for said in (
                "" if trainer.fits else _trainer_refusal(config, trainer, split, compute),
                "" if rollout.fits else _rollout_refusal(config, rollout, machines),
            )
            if said
        ),
        notes=tuple(_notes(config, rollout, split, seconds)),
    )


def _trainer_refusal(
    config: RunConfig, trainer: TrainerMemory, split: Split, compute: Compute
) -> str:
    has, also = f"{trainer.capacity_bytes / GIB:.1f} GiB", ""
    if split.shared:
        has += " (what rollout.gpu_memory_ratio leaves)"
        also = ", or lower rollout.gpu_memory_ratio"
    if trainer.loading_bytes > trainer.capacity_bytes and config.trainer.zero_stage > 0:
        # No setting changes it: DeepSpeed takes the whole model before it shares it out.
        return (
            f"a trainer GPU must take the whole model at the start, "
            f"{trainer.loading_bytes / GIB:.1f} GiB, and has {has}: choose GPUs with more memory "
            f"or a smaller model{also}"
        )
    return (
        f"a trainer GPU needs {max(trainer.bytes, trainer.loading_bytes) / GIB:.1f} GiB and has "
        f"{has}; the largest term is {trainer.largest.name} "
        f"({trainer.largest.bytes / GIB:.1f} GiB): {advice(config, compute)}{also}"
    )


def _rollout_refusal(config: RunConfig, rollout: RolloutMemory, machines: Machines) -> str:
    return (
        f"an engine's GPU has {rollout.cache_bytes / GIB:.1f} GiB for the key-value cache, beside "
        f"{rollout.weights_bytes / GIB:.1f} GiB of weights, and a rollout of "
        f"{config.tokens_per_rollout} tokens takes "
        f"{config.tokens_per_rollout * rollout.cache_bytes_per_token / GIB:.1f} GiB: raise "
        f"rollout.tensor_parallel (now {config.rollout.tensor_parallel}, at most "
        f"{machines.gpus_per_node}) or rollout.gpu_memory_ratio"
    )


def _notes(
    config: RunConfig, rollout: RolloutMemory, split: Split, seconds: StepSeconds | None
) -> list[str]:
    notes = []
    if split.idle_gpus:
        notes.append(f"{split.idle_gpus} GPU(s) are left over and do nothing")
    if rollout.fits and rollout.concurrent_rollouts < rollout.asked_rollouts:
        notes.append(
            f"an engine is asked for {rollout.asked_rollouts} rollouts at a time and its cache "
            f"holds {rollout.concurrent_rollouts} of mean length: the others wait inside vLLM; "
            f"lower rollout.groups_in_flight to "
            f"{max(1, rollout.concurrent_rollouts // config.algorithm.group_size)}"
        )
    if seconds and seconds.verify > seconds.sample:
        pods = -(-seconds.verify // seconds.sample)
        notes.append(f"one reward pod is slower than the sampling: run {pods:.0f}")
    return notes
