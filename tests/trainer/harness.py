"""What the trainer's tests share: a tiny random Llama, its config, a step trained in-process."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from deepspeed.utils import safe_get_full_grad
from prometheus_client import CollectorRegistry
from transformers import LlamaConfig, LlamaForCausalLM

from dapod import config as configuration
from dapod.config import RunConfig
from dapod.heartbeat import Heartbeat
from dapod.types import Group
from dapod.v1.buffer_pb2 import BatchPlan
from services.trainer.cut import Row
from services.trainer.metrics import TrainerMetrics
from services.trainer.phases import Phases
from services.trainer.policy import Policy
from services.trainer.ranks import Ranks
from services.trainer.reference import Reference, load_reference
from services.trainer.steps import TrainedStep
from services.trainer.updates import Updates

VOCABULARY = 64


def write_tiny_model(directory: Path, *, seed: int = 0, **settings: Any) -> Path:
    """A random two-layer Llama with a tied head, in the layout of a real model."""
    torch.manual_seed(seed)
    described = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "tie_word_embeddings": True,
        "initializer_range": 0.3,
    }
    model: Any = LlamaForCausalLM(LlamaConfig(**(described | settings)))
    model.to(torch.bfloat16).save_pretrained(directory)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (directory / name).write_text("{}\n")
    return directory


def make_config(model: Path, **sections: Mapping[str, Any]) -> RunConfig:
    """A config for the tiny model; `sections` override single keys."""
    raw: dict[str, dict[str, Any]] = {
        "run": {"name": "tiny", "steps": 4},
        "model": {"path": str(model)},
        "data": {"path": "unused.jsonl", "verifier": "integer"},
        "sampling": {"max_prompt_tokens": 16, "max_response_tokens": 64},
        "algorithm": {
            "group_size": 4,
            "prompts_per_step": 4,
            "prompts_per_update": 2,
            "max_leases_per_step": 100,
        },
        "optimiser": {"learning_rate": 1e-3, "warmup_steps": 0},
        "trainer": {"zero_stage": 2, "tokens_per_micro_batch": 128, "checkpoint_every_steps": 4},
        "rollout": {"groups_in_flight": 1},
    }
    for section, values in sections.items():
        raw[section] = raw.get(section, {}) | dict(values)
    return configuration.parse(raw, "test")


def write_config(config: RunConfig, file: Path) -> Path:
    """The config as a TOML file."""
    lines = []
    for section, values in config.model_dump(mode="json", exclude_none=True).items():
        lines.append(f"[{section}]")
        lines += [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    file.write_text("\n".join(lines) + "\n")
    return file


class RecordingPolicy(Policy):
    """Remembers the whole gradient of every update, in fp32."""

    gradients: list[dict[str, torch.Tensor]]

    def update(self, learning_rate: float) -> float:
        if not hasattr(self, "gradients"):
            self.gradients = []
        whole = {n: safe_get_full_grad(p) for n, p in self.module.named_parameters()}
        self.gradients.append({n: g.detach().clone().float() for n, g in whole.items()})
        return super().update(learning_rate)


@dataclass(frozen=True, kw_only=True)
class Trained:
    """One step trained in this process."""

    step: TrainedStep
    gradients: list[dict[str, torch.Tensor]]
    policy: RecordingPolicy


def train_step(
    config: RunConfig,
    ranks: Ranks,
    plan: BatchPlan,
    groups: Sequence[Group],
    *,
    dtype: torch.dtype = torch.float32,
    load: Path | None = None,
    policy: RecordingPolicy | None = None,
    reference: Reference | None = None,
    cut: list[list[list[Row]]] | None = None,
    heartbeat: Heartbeat | None = None,
) -> Trained:
    """A policy trained on one plan: a fresh one, one from a checkpoint, or the one given.

    `reference` and `cut` are what the config says unless given.
    """
    policy = policy or RecordingPolicy(config, ranks, dtype=dtype)
    if load is not None:
        policy.load(load)
    metrics = TrainerMetrics(CollectorRegistry())
    updates = Updates(
        config=config,
        policy=policy,
        reference=reference or load_reference(config, ranks, dtype=dtype),
        ranks=ranks,
        phases=Phases(metrics, heartbeat or Heartbeat(), {}),
        metrics=metrics,
        stop=threading.Event(),
    )
    payloads = {group.group_id: group for group in groups}
    step = updates.run(plan, cut or updates.cut(plan), payloads)
    return Trained(step=step, gradients=policy.gradients, policy=policy)


@contextmanager
def one_rank(directory: Path) -> Iterator[Ranks]:
    """A process group of this process alone, on one thread: for a tiny model, threads that wait for
    each other on a busy machine cost several times what they gain."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{directory}/rendezvous", rank=0, world_size=1
    )
    try:
        yield Ranks()
    finally:
        dist.destroy_process_group()


def relative_error(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> float:
    """|one - other| / |one| over all tensors together."""
    assert one.keys() == other.keys()
    difference = sum(float((one[n] - other[n]).double().pow(2).sum()) for n in one)
    return (difference / sum(float(one[n].double().pow(2).sum()) for n in one)) ** 0.5


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def described(step: TrainedStep) -> dict[str, float]:
    """The numbers of a step; what was not measured has none."""
    return {name: value for name, value in asdict(step).items() if value is not None}


OF_THE_LIBRARIES = [
    pytest.mark.filterwarnings(f"ignore:::{library}") for library in ("torch", "deepspeed")
]
"""Their warnings are not ours to fix; every other warning stays an error."""
