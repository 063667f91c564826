"""Most tokens of one pass of the engine, vLLM's `max_num_batched_tokens`: for the engine's own
arguments and for what `dapod plan` counts.

It is always said. As the rollout service builds its engine vLLM would take 2048 whatever the GPU
and refuse to start with more sequences than that: vllm 0.32.0, `engine/arg_utils.py`,
`get_batch_defaults` (its defaults are by usage context, AsyncLLM's own has none) and
`config/scheduler.py`, `verify_max_model_len`.
"""

from __future__ import annotations

from dapod.config import RunConfig

ON_CPU = 2048
"""vLLM's DEFAULT_MAX_NUM_BATCHED_TOKENS."""
ON_GPU = 8192
"""Its default for a server on GPUs from 70 GiB on and for offline use on smaller ones and the A100,
where it found more to cost throughput (`get_batch_defaults`)."""


def batched_tokens(config: RunConfig, *, cpu: bool) -> int:
    """At least one for each rollout in flight, no more than all of them hold."""
    rollouts = rollouts_in_flight(config)
    most = min(ON_CPU if cpu else ON_GPU, rollouts * config.context_tokens)
    return max(most, rollouts)


def rollouts_in_flight(config: RunConfig) -> int:
    """vLLM's `max_num_seqs`."""
    return config.rollout.groups_in_flight * config.algorithm.group_size
