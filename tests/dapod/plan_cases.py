"""Configs and shapes that the tests of `dapod plan` work out by hand."""

from __future__ import annotations

from typing import Any

from dapod import config as configuration
from dapod.config import RunConfig
from dapod.plan import Assumptions, ModelShape
from dapod.plan.assumptions import assumptions_of
from dapod.plan.hardware import Gpu
from dapod.plan.model_shape import KNOWN, shape_of

SEVEN = shape_of(KNOWN["qwen2.5-7b"], "qwen2.5-7b")
THIRTY_TWO = shape_of(KNOWN["qwen2.5-32b"], "qwen2.5-32b")

SMALL = ModelShape(
    layers=2,
    hidden=8,
    intermediate=32,
    heads=4,
    key_value_heads=2,
    head_dim=2,
    vocabulary=100,
    tied=False,
    query_key_value_bias=False,
    output_bias=False,
    query_key_norm=False,
    context=4096,
)
"""P = 2·800 + 2·(2·8·(8 + 4) + 3·8·32 + 2·8) + 8 = 1600 + 2·976 + 8 = 3560."""

ROUND_GPU = Gpu(
    name="round",
    memory_bytes=80e9,
    bf16_flops=1e15,
    memory_bytes_per_second=2e12,
    source="made up",
)


def make_config(**sections: dict[str, Any]) -> RunConfig:
    """A complete config of round numbers; `sections` override single keys."""
    raw: dict[str, dict[str, Any]] = {
        "run": {"name": "planned", "steps": 10},
        "model": {"path": "/nowhere/qwen2.5-7b"},
        "data": {"path": "/nowhere/rows.jsonl", "verifier": "integer"},
        "sampling": {"max_prompt_tokens": 100, "max_response_tokens": 900},
        "algorithm": {
            "group_size": 8,
            "prompts_per_step": 16,
            "prompts_per_update": 4,
            "max_leases_per_step": 1000,
        },
        "optimiser": {"learning_rate": 1e-6},
        "trainer": {"ranks": 4, "tokens_per_micro_batch": 2000, "checkpoint_every_steps": 5},
        "rollout": {"groups_in_flight": 4},
    }
    for name, keys in sections.items():
        raw[name] = raw.get(name, {}) | keys
    return configuration.parse(raw, "test")


def assume(config: RunConfig, *given: str) -> Assumptions:
    """Round throughputs: 100 % of the peaks, 1 GB/s, no reserve; `given` as on the command line."""
    exact = ("mfu=1", "bandwidth_share=1", "reserve_gib=0", "informative_share=0.5")
    return assumptions_of(config, (*exact, *given))
