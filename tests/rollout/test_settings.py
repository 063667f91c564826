"""What vLLM is told follows from the run's config."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dapod import config as configuration
from dapod.config import RunConfig
from services.rollout.settings import engine_arguments, engine_seed, set_environment

ROOT = Path(__file__).parents[2]
QUICKSTART = ROOT / "configs" / "quickstart.toml"


@pytest.fixture
def config() -> RunConfig:
    return configuration.load(QUICKSTART, ["rollout.threads=2"])


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


@pytest.mark.parametrize(
    ("changes", "cpu", "tokens"),
    [
        ([], True, 2048),
        ([], False, 64 * 80),  # no more than the rollouts in flight ever hold
        (["rollout.groups_in_flight=16"], False, 8192),
        (["algorithm.group_size=512"], True, 4096),
        (["algorithm.group_size=512"], False, 8192),
        (["algorithm.group_size=512", "rollout.groups_in_flight=32"], False, 32 * 512),
        (["algorithm.group_size=2", "rollout.groups_in_flight=1"], True, 160),
    ],
)
def test_a_pass_has_room_for_a_token_of_every_rollout(
    changes: list[str], cpu: bool, tokens: int
) -> None:
    config = configuration.load(QUICKSTART, changes)
    arguments = engine_arguments(config, model=Path("m"), worker_id="a", cpu=cpu)
    assert arguments["max_num_batched_tokens"] == tokens
    assert tokens >= arguments["max_num_seqs"]


def test_vllm_takes_more_rollouts_in_flight_than_its_default_tokens(tmp_path: Path) -> None:
    described = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "vocab_size": 64,
        "max_position_embeddings": 256,
    }
    (tmp_path / "config.json").write_text(json.dumps(described))
    program = Path(__file__).with_name("engine_config.py")
    done = subprocess.run(
        [sys.executable, program, QUICKSTART, tmp_path, "algorithm.group_size=512"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    said = json.loads(done.stdout.splitlines()[-1])
    assert said == {"cpu": [8 * 512, 4096], "gpu": [8 * 512, 8192]}


def test_two_pods_and_two_seeds_draw_different_numbers() -> None:
    seeds = {engine_seed(0, "a"), engine_seed(0, "b"), engine_seed(1, "a")}
    assert len(seeds) == 3
    assert engine_seed(0, "a") in seeds
