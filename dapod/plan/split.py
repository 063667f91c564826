"""Which GPUs train and which sample.

The trainer's ranks (`trainer.ranks`) take one GPU each, on one node or on several whole ones. Every
other GPU samples, `rollout.tensor_parallel` of them to an engine, no engine across nodes. On a
machine with a single GPU both share it.
"""

from __future__ import annotations

from dataclasses import dataclass

from dapod.config import ConfigError, RunConfig
from dapod.plan.hardware import Machines
from dapod.plan.model_shape import ModelShape


@dataclass(frozen=True, kw_only=True)
class Split:
    """GPUs by what they do."""

    trainer_gpus: int
    trainer_nodes: int
    rollout_replicas: int
    tensor_parallel: int
    shared: bool
    """Whether trainer and rollout are on the same, only GPU."""
    idle_gpus: int

    @property
    def rollout_gpus(self) -> int:
        return self.rollout_replicas * self.tensor_parallel


def split_of(config: RunConfig, machines: Machines) -> Split:
    """Raises `ConfigError` when the trainer or a single engine has no place."""
    ranks, tensor_parallel = config.trainer.ranks, config.rollout.tensor_parallel
    node = machines.gpus_per_node
    trainer_nodes = -(-ranks // node)
    if (ranks > node and ranks % node) or trainer_nodes > machines.nodes:
        raise ConfigError(
            f"trainer.ranks ({ranks}) has no place on {machines.nodes} node(s) of {node} GPU(s): "
            f"set it to {node} or less, or to whole nodes of {node}"
        )
    if tensor_parallel > node:
        raise ConfigError(
            f"rollout.tensor_parallel ({tensor_parallel}) is more than --gpus-per-node ({node}), "
            f"and an engine is on one node: set rollout.tensor_parallel={node} or less"
        )
    if machines.gpus == 1:
        return Split(
            trainer_gpus=1,
            trainer_nodes=1,
            rollout_replicas=1,
            tensor_parallel=1,
            shared=True,
            idle_gpus=0,
        )
    left, others = trainer_nodes * node - ranks, machines.nodes - trainer_nodes
    replicas = left // tensor_parallel + others * (node // tensor_parallel)
    if not replicas:
        raise ConfigError(
            f"no engine fits beside the trainer: {left} of {trainer_nodes * node} GPUs are left "
            f"and rollout.tensor_parallel is {tensor_parallel}: lower trainer.ranks, lower "
            f"rollout.tensor_parallel or raise --nodes"
        )
    return Split(
        trainer_gpus=ranks,
        trainer_nodes=trainer_nodes,
        rollout_replicas=replicas,
        tensor_parallel=tensor_parallel,
        shared=False,
        idle_gpus=machines.gpus - ranks - replicas * tensor_parallel,
    )


def check_shape(config: RunConfig, shape: ModelShape) -> None:
    """Raises `ConfigError` for what no number of GPUs cures."""
    tensor_parallel = config.rollout.tensor_parallel
    if shape.heads % tensor_parallel:
        raise ConfigError(
            f"rollout.tensor_parallel ({tensor_parallel}) must divide the model's {shape.heads} "
            f"attention heads"
        )
    if config.tokens_per_rollout > shape.context:
        raise ConfigError(
            f"sampling.max_prompt_tokens + sampling.max_response_tokens = "
            f"{config.tokens_per_rollout}, but the model's context is {shape.context} tokens: "
            f"lower one of them"
        )
