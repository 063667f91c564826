"""What Redis holds and what lies on disks: payloads of groups, published policies, checkpoints."""

from __future__ import annotations

from dataclasses import dataclass

from dapod.config import RunConfig
from dapod.plan.assumptions import Assumptions
from dapod.plan.model_shape import ModelShape

POLICIES_KEPT = 3
"""The two newest (services/trainer/train.py) and one that is being written."""
CHECKPOINTS_KEPT = 3
"""Two, and one that is being written (services/trainer/checkpoint.py)."""


@dataclass(frozen=True, kw_only=True)
class Redis:
    """Payload of the groups; the keys beside it are small."""

    step_bytes: int
    """One step, every response as long as it may be."""
    mean_step_bytes: float
    live_steps: int
    """Steps whose payload lives at once (RunConfig.live_payload_steps)."""

    @property
    def bytes(self) -> int:
        """The buffer refuses a smaller `maxmemory`. Rewriting the append-only file forks: the
        machine needs up to twice as much."""
        return self.step_bytes * self.live_steps


@dataclass(frozen=True, kw_only=True)
class Storage:
    """Bytes on shared storage and on the trainer's own volume."""

    publish_bytes: int
    policies_bytes: int
    checkpoint_bytes: int
    checkpoints_bytes: int


def redis_of(config: RunConfig, assumed: Assumptions) -> Redis:
    sizes = config.algorithm
    # Ids in int32 and log-probs in float32 for each token of a response, ids of the prompt.
    mean_group = sizes.group_size * 8 * assumed.response_tokens + 4 * assumed.prompt_tokens
    return Redis(
        step_bytes=sizes.prompts_per_step * config.group_bytes,
        mean_step_bytes=sizes.prompts_per_step * mean_group,
        live_steps=config.live_payload_steps,
    )


def storage_of(config: RunConfig, shape: ModelShape) -> Storage:
    # bf16 weights, fp32 weights and two moments; without ZeRO the fp32 weights are the only ones.
    per_parameter = 12 if config.trainer.zero_stage == 0 else 14
    checkpoint = per_parameter * shape.parameters
    return Storage(
        publish_bytes=shape.published_bytes,
        policies_bytes=POLICIES_KEPT * shape.published_bytes,
        checkpoint_bytes=checkpoint,
        checkpoints_bytes=CHECKPOINTS_KEPT * checkpoint,
    )
