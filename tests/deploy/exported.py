"""The names of all metrics that the services export, read from the classes that export them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric

from dapod.types import RunState
from services.buffer.metrics import BufferMetrics, StateCollector
from services.buffer.records import Counts, EvaluationCounts, ServerInfo
from services.reward.metrics import RewardMetrics
from services.rollout.metrics import RolloutMetrics
from services.trainer.metrics import TrainerMetrics

VLLM = frozenset((Path(__file__).parent / "vllm_metrics.txt").read_text().split())
"""What vLLM 0.32 exports (the families); `test_names` compares it with the installed source."""

OTHERS = frozenset({"up", "ALERTS", "process_resident_memory_bytes"})
"""Prometheus' own, and the rollout's default registry's."""

COUNTS = Counts(
    state=RunState.RUNNING,
    end_reason="",
    policy=None,
    checkpoint_step=0,
    next_step=0,
    epoch=0,
    groups={},
    totals={},
    stats={},
    conservation_error=0,
    faults=(),
    payload_bytes=0,
    capacity=0,
    workers=(),
    evaluation=EvaluationCounts(problems={}),
)
SERVER = ServerInfo(
    memory_bytes=0, memory_limit_bytes=0, append_only=True, append_only_ok=True, delayed_fsyncs=0
)


def families() -> list[Metric]:
    """Every family of the four services."""
    registry = CollectorRegistry()
    for metrics in (BufferMetrics, RewardMetrics, RolloutMetrics, TrainerMetrics):
        metrics(registry)
    registry.register(StateCollector(counts=lambda: COUNTS, server=lambda: SERVER, max_staleness=1))
    return list(registry.collect())


def series(family: Metric) -> Iterator[str]:
    """The names a family is queried by."""
    if family.type == "histogram":
        yield from (f"{family.name}_{end}" for end in ("bucket", "sum", "count"))
    else:
        yield f"{family.name}_total" if family.type == "counter" else family.name


def known_names() -> frozenset[str]:
    """Everything a query may name, recorded series apart."""
    ours = {name for family in families() for name in series(family)}
    vllm = {name + end for name in VLLM for end in ("", "_total", "_bucket", "_sum", "_count")}
    return OTHERS | ours | vllm


def unused(used: Iterable[str]) -> set[str]:
    """Families of ours none of whose series is queried."""
    queried = set(used)
    return {family.name for family in families() if not queried & set(series(family))}
