"""What one engine (vLLM) holds on each of its GPUs, and how many rollouts it samples at once.

vLLM takes `rollout.gpu_memory_ratio` of a GPU: weights, what a pass needs, and the rest is
key-value cache. Weights and key-value heads are split over `rollout.tensor_parallel` GPUs; with
fewer heads than GPUs they are repeated.
"""

from __future__ import annotations

from dataclasses import dataclass

from dapod.batched_tokens import batched_tokens, rollouts_in_flight
from dapod.config import RunConfig
from dapod.plan.assumptions import Assumptions
from dapod.plan.hardware import Gpu
from dapod.plan.model_shape import ModelShape


@dataclass(frozen=True, kw_only=True)
class RolloutMemory:
    """One GPU of an engine; tokens and rollouts are of the whole engine."""

    given_bytes: float
    """gpu_memory_ratio of the GPU."""
    weights_bytes: float
    pass_tokens: int
    """vLLM's max_num_batched_tokens."""
    pass_bytes: float
    reserve_bytes: float
    cache_bytes_per_token: float
    """On this GPU."""
    cache_tokens: int
    full_length_rollouts: int
    """How many of the longest prompt and response the cache holds."""
    asked_rollouts: int
    """groups_in_flight · group_size, vLLM's max_num_seqs."""
    concurrent_rollouts: int
    """Of mean length, at most those asked for."""

    @property
    def cache_bytes(self) -> float:
        held = self.weights_bytes + self.pass_bytes + self.reserve_bytes
        return max(0.0, self.given_bytes - held)

    @property
    def fits(self) -> bool:
        return self.full_length_rollouts >= 1


def rollout_memory(
    config: RunConfig, shape: ModelShape, gpu: Gpu, assumed: Assumptions
) -> RolloutMemory:
    """A sequence that is being sampled holds its mean length on average: at any moment longer ones
    are met more often, which for lengths as uneven as these makes up for their being unfinished."""
    split = config.rollout.tensor_parallel
    asked, pass_tokens = rollouts_in_flight(config), batched_tokens(config, cpu=False)
    given = config.rollout.gpu_memory_ratio * gpu.memory_bytes
    weights = shape.published_bytes / split
    reserve = assumed.reserve_gib * 2**30
    one_pass = _pass_bytes(shape, split, pass_tokens, asked)
    per_token = shape.key_value_bytes_per_token / min(split, shape.key_value_heads)
    tokens = int(max(0.0, given - weights - one_pass - reserve) / per_token)
    mean = assumed.prompt_tokens + assumed.response_tokens
    return RolloutMemory(
        given_bytes=given,
        weights_bytes=weights,
        pass_tokens=pass_tokens,
        pass_bytes=one_pass,
        reserve_bytes=reserve,
        cache_bytes_per_token=per_token,
        cache_tokens=tokens,
        full_length_rollouts=tokens // config.tokens_per_rollout,
        asked_rollouts=asked,
        concurrent_rollouts=min(asked, int(tokens / mean)),
    )


def _pass_bytes(shape: ModelShape, split: int, tokens: int, asked: int) -> float:
    """The widest layer of a prefill, and three fp32 tensors of logits for sampling."""
    layer = tokens * (6 * shape.intermediate / split + 8 * shape.hidden)
    return layer + 3 * 4 * asked * shape.vocabulary
