"""What vLLM is told follows from the run's config."""

from __future__ import annotations

from pathlib import Path

import pytest

from dapod import config as configuration
from dapod.config import RunConfig
from services.rollout.settings import engine_arguments, engine_seed, set_environment

ROOT = Path(__file__).parents[2]


@pytest.fixture
def config() -> RunConfig:
    return configuration.load(ROOT / "configs" / "quickstart.toml", ["rollout.threads=2"])


def test_a_cpu_engine_needs_no_compiler_and_no_network(config: RunConfig) -> None:
    variables: dict[str, str] = {}
    set_environment(variables, config, cpu=True)
    assert variables["TORCHDYNAMO_DISABLE"] == "1"
    assert variables["HF_HUB_OFFLINE"] == "1"
    assert variables["OMP_NUM_THREADS"] == "2"
    assert engine_arguments(config, model=Path("m"), worker_id="a", cpu=True)["enforce_eager"]


def test_a_variable_that_is_already_set_wins(config: RunConfig) -> None:
    variables = {"VLLM_LOGGING_LEVEL": "DEBUG"}
    set_environment(variables, config, cpu=True)
    assert variables["VLLM_LOGGING_LEVEL"] == "DEBUG"


def test_a_cuda_engine_keeps_vllms_own_compilation_and_memory_rule(config: RunConfig) -> None:
    variables: dict[str, str] = {}
    set_environment(variables, config, cpu=False)
    assert "TORCHDYNAMO_DISABLE" not in variables
    assert variables["VLLM_WORKER_MULTIPROC_METHOD"] == "spawn"
    arguments = engine_arguments(config, model=Path("m"), worker_id="a", cpu=False)
    assert arguments["gpu_memory_utilization"] == config.rollout.gpu_memory_ratio
    assert "enforce_eager" not in arguments and "kv_cache_memory_bytes" not in arguments


def test_sizes_follow_from_the_run(config: RunConfig) -> None:
    arguments = engine_arguments(config, model=Path("m"), worker_id="a", cpu=True)
    assert arguments["max_model_len"] == 64 + 16
    assert arguments["max_num_seqs"] == 8 * 8
    assert arguments["kv_cache_memory_bytes"] == 2**29
    assert arguments["logprobs_mode"] == "processed_logprobs"


def test_two_pods_and_two_seeds_draw_different_numbers() -> None:
    seeds = {engine_seed(0, "a"), engine_seed(0, "b"), engine_seed(1, "a")}
    assert len(seeds) == 3
    assert engine_seed(0, "a") in seeds
