"""Expected seconds of a step by phase, from stated throughputs.

    rollouts   sample the step's groups, those that are dropped too; change over to the new policy
    reward     verify them, beside the sampling
    trainer    old log-probs, updates, publish

With `max_staleness` ≥ 1 rollouts and trainer work side by side and the slower side sets the pace;
with 0, or on the same GPU, they take turns.

- Training: forward F a token (`forward_flops_per_token`), backward 2 F (Kaplan et al., 2001.08361),
  with gradient checkpointing F more, old log-probs F for all updates but the first, the reference
  model F. Prompts are counted with every response.
- Decoding: a pass reads all weights and the cache of all running sequences, and computes F for each
  (Pope et al., 2211.05102): the slower of the two bounds, at the stated share of the peaks.
- Change-over: the engine stops admitting, the longest response runs to its end (half of that time
  is lost, the slots empty one after another), then the weights are read.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from dapod.config import RunConfig
from dapod.plan.assumptions import Assumptions
from dapod.plan.hardware import Gpu
from dapod.plan.model_shape import ModelShape
from dapod.plan.split import Split

UPDATE_BYTES = 28
"""AdamW, a parameter: reads weight, gradient and two moments, writes all but the gradient, fp32."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """What one step has to do."""

    rollouts_trained: int
    rollouts_sampled: float
    tokens_sampled: float
    tokens_trained: float
    training_flops: float
    old_logprob_flops: float


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """One engine at work."""

    seconds_per_pass: float
    tokens_per_second: float
    bound: str
    """`memory` or `arithmetic`."""


@dataclass(frozen=True, kw_only=True)
class StepSeconds:
    """Of one step, once the pipeline is full."""

    sample: float
    change_over: float
    verify: float
    """By one reward pod."""
    old_logprobs: float
    update: float
    publish: float
    turns: bool
    """Whether rollouts and trainer take turns."""
    stops_waiting: int | None
    """Engines from which on the trainer does not wait; None: it always does."""

    @property
    def rollout_side(self) -> float:
        return max(self.sample, self.verify) + self.change_over

    @property
    def trainer_side(self) -> float:
        return self.old_logprobs + self.update + self.publish

    @property
    def step(self) -> float:
        if self.turns:
            return self.rollout_side + self.trainer_side
        return max(self.rollout_side, self.trainer_side)

    @property
    def wait(self) -> float:
        """Of the trainer."""
        return self.step - self.trainer_side


def work_of(config: RunConfig, shape: ModelShape, assumed: Assumptions) -> Work:
    trained = config.algorithm.prompts_per_step * config.algorithm.group_size
    sampled = trained / assumed.informative_share
    row = assumed.prompt_tokens + assumed.response_tokens
    forward = shape.forward_flops_per_token(row) * trained * row
    again = 1 if config.trainer.gradient_checkpointing else 0
    reference = 1 if config.algorithm.kl_coefficient else 0
    recomputed = config.algorithm.old_logprobs == "recompute"
    later_updates = (config.updates_per_step - 1) / config.updates_per_step
    return Work(
        rollouts_trained=trained,
        rollouts_sampled=sampled,
        tokens_sampled=sampled * assumed.response_tokens,
        tokens_trained=trained * row,
        training_flops=forward * (3 + again + reference),
        old_logprob_flops=forward * later_updates if recomputed else 0.0,
    )


def decoding_of(
    concurrent: int, split: int, shape: ModelShape, gpu: Gpu, assumed: Assumptions
) -> Decoding:
    """`concurrent` ≥ 1 sequences on `split` GPUs."""
    held = assumed.prompt_tokens + assumed.response_tokens
    read = shape.published_bytes + concurrent * held * shape.key_value_bytes_per_token
    memory = read / (split * gpu.memory_bytes_per_second * assumed.bandwidth_share)
    # A token sees everything before it: twice what a token of a causal row sees on average.
    computed = concurrent * shape.forward_flops_per_token(2 * held)
    arithmetic = computed / (split * gpu.bf16_flops * assumed.bandwidth_share)
    seconds = max(memory, arithmetic)
    return Decoding(
        seconds_per_pass=seconds,
        tokens_per_second=concurrent / seconds,
        bound="memory" if memory >= arithmetic else "arithmetic",
    )


def step_seconds(
    config: RunConfig,
    shape: ModelShape,
    gpu: Gpu,
    split: Split,
    work: Work,
    decoding: Decoding,
    assumed: Assumptions,
) -> StepSeconds:
    storage = assumed.storage_gb_per_second * 1e9
    peak = split.trainer_gpus * gpu.bf16_flops * assumed.mfu
    drain = config.sampling.max_response_tokens * decoding.seconds_per_pass / 2
    change_over = drain + shape.published_bytes / storage
    alone = work.tokens_sampled / decoding.tokens_per_second
    verify = work.rollouts_sampled / (config.reward.workers * assumed.verifications_per_second)
    old_logprobs = work.old_logprob_flops / peak
    offloaded = _offloaded_updates(config, shape, assumed) / split.trainer_nodes
    update = work.training_flops / peak + offloaded
    # Written, and read again for its checksums.
    publish = 2 * shape.published_bytes / storage
    turns = split.shared or config.algorithm.max_staleness == 0
    hidden = old_logprobs + update + publish - change_over
    never = turns or hidden <= 0 or verify > hidden
    return StepSeconds(
        sample=alone / split.rollout_replicas,
        change_over=change_over,
        verify=verify,
        old_logprobs=old_logprobs,
        update=update,
        publish=publish,
        turns=turns,
        stops_waiting=None if never else math.ceil(alone / hidden),
    )


def _offloaded_updates(config: RunConfig, shape: ModelShape, assumed: Assumptions) -> float:
    """On one node. On the GPU an update takes no time worth counting beside the passes."""
    if not config.trainer.offload_optimiser:
        return 0.0
    moved = config.updates_per_step * UPDATE_BYTES * shape.parameters
    return moved / (assumed.host_gb_per_second * 1e9)
