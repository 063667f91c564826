"""All metrics of the buffer service.

What the run has come to is read from Redis at each scrape (`StateCollector`): a restart of the
buffer loses none of it, and every replica tells the same. What this process did is counted here.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import grpc
from prometheus_client import CollectorRegistry, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from dapod.types import Disposition, RunState
from services.buffer.records import Counts, Plan, ServerInfo
from services.buffer.scripts import StoreAway

log = logging.getLogger("dapod.buffer")

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 15.0, 60.0)
_VERSIONS = (0, 1, 2, 3, 4, 6, 8, 12, 16, 32, 64)

_PROGRESS = frozenset({"SubmitGroup", "CommitStep", "Checkpointed", "Resume"})
"""The calls that carry a run forward; the others are repeated even when nothing moves."""


@dataclass
class _Call:
    """The status a call ends with."""

    code: grpc.StatusCode = grpc.StatusCode.OK


class BufferMetrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        self.rpc_seconds = Histogram(
            "dapod_buffer_rpc_seconds",
            "Time to answer one call, by method and status code; NextBatch waits for its batch.",
            ["method", "code"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.batch_staleness = Histogram(
            "dapod_buffer_batch_staleness_versions",
            "Staleness of each group in a batch when it was cut: the trainer's version minus the "
            "group's; above algorithm.max_staleness is a bug.",
            buckets=_VERSIONS,
            registry=registry,
        )
        self.last_progress = Gauge(
            "dapod_buffer_last_progress_timestamp_seconds",
            "When this replica last took a group, a commit, a checkpoint or a resume, in Unix "
            "time; NaN before the first.",
            registry=registry,
        )
        self.last_progress.set(math.nan)

    @contextmanager
    def measured(self, method: str) -> Iterator[_Call]:
        """Times one call."""
        started, call = time.perf_counter(), _Call()
        try:
            yield call
        except BaseException:
            if call.code is grpc.StatusCode.OK:
                call.code = grpc.StatusCode.UNKNOWN
            raise
        finally:
            labelled = self.rpc_seconds.labels(method, call.code.name)
            labelled.observe(time.perf_counter() - started)
            if method in _PROGRESS and call.code is grpc.StatusCode.OK:
                self.last_progress.set_to_current_time()

    def handed_out(self, plan: Plan) -> None:
        """A batch was cut."""
        for group in plan.groups:
            self.batch_staleness.observe(max(0, plan.step - group.policy_number))


class StateCollector(Collector):
    """The run as Redis has it, counted at scrape, and Redis itself."""

    def __init__(
        self,
        *,
        counts: Callable[[], Counts],
        server: Callable[[], ServerInfo],
        max_staleness: int,
    ) -> None:
        self._counts = counts
        self._server = server
        self._max_staleness = max_staleness

    def collect(self) -> Iterator[Metric]:
        yield _gauge(
            "staleness_limit_versions",
            "algorithm.max_staleness: how many versions behind a group may be.",
            self._max_staleness,
        )
        # Counting writes (leases expire), so a Redis with a full disk tells of itself and no more.
        with suppress(StoreAway):
            yield from _server(self._server())
        counts = self._counted()
        yield _gauge(
            "redis_up",
            "1 while Redis answers and can write; without it the state of the run is not known.",
            counts is not None,
        )
        if counts is not None:
            if counts.conservation_error:
                log.error("groups are lost or doubled: %s", "; ".join(counts.faults))
            yield from _gauges(counts)
            yield from _evaluation(counts)
            yield from _counters(counts)

    def _counted(self) -> Counts | None:
        try:
            return self._counts()
        except StoreAway:
            return None


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"dapod_buffer_{name}", text, value=value)


def _counter(name: str, text: str, value: float) -> CounterMetricFamily:
    return CounterMetricFamily(f"dapod_buffer_{name}", text, value=value)


def _server(server: ServerInfo) -> Iterator[Metric]:
    yield _gauge("redis_memory_bytes", "Memory Redis has allocated.", server.memory_bytes)
    yield _gauge(
        "redis_memory_limit_bytes",
        "Redis' maxmemory, 0 when it has none; at the limit submissions wait.",
        server.memory_limit_bytes,
    )
    yield _gauge(
        "redis_append_only_enabled",
        "1 while Redis keeps an append-only file; without one a restart loses the groups.",
        server.append_only,
    )
    yield _gauge(
        "redis_append_only_ok",
        "0 when the last write or rewrite of the append-only file failed.",
        server.append_only_ok,
    )
    yield _counter(
        "redis_delayed_fsyncs",
        "Times Redis' writes went on although an fsync was still under way: the disk is too slow.",
        server.delayed_fsyncs,
    )


def _gauges(counts: Counts) -> Iterator[Metric]:
    groups = GaugeMetricFamily(
        "dapod_buffer_groups", "Groups by the one place each is in.", labels=["state"]
    )
    for place, number in sorted(counts.groups.items()):
        groups.add_metric([place], number)
    yield groups
    yield _gauge(
        "conservation_error_groups",
        "Groups lost or doubled, recounted from the keys; above 0 is a bug or a tampered Redis.",
        counts.conservation_error,
    )
    yield _gauge("payload_bytes", "Sampled groups held in Redis.", counts.payload_bytes)
    yield _gauge(
        "capacity_groups",
        "Leases a rollout with the newest policy could still get before the next step is trained.",
        counts.capacity,
    )
    version = -1 if counts.policy is None else counts.policy.number
    yield _gauge("policy_version", "Newest published policy; -1 before the first.", version)
    yield _gauge("next_step", "First step whose batch is not cut yet.", counts.next_step)
    yield _gauge(
        "checkpoint_step", "Steps before this one are safe on disk.", counts.checkpoint_step
    )
    yield _gauge("workers", "Rollout pods seen within two lease times.", len(counts.workers))
    yield _gauge("prompt_epoch", "Epoch of the data set that is being queued.", counts.epoch)
    yield _gauge(
        "run_finished",
        "1 once the run has ended and rollouts idle by intention.",
        counts.state is RunState.FINISHED,
    )


def _evaluation(counts: Counts) -> Iterator[Metric]:
    evaluation = counts.evaluation
    problems = GaugeMetricFamily(
        "dapod_buffer_evaluation_problems",
        "Problems of open evaluations by the one place each is in.",
        labels=["state"],
    )
    for place in ("queued", "leased", "done"):
        problems.add_metric([place], evaluation.problems.get(place, 0))
    yield problems
    version = -1 if evaluation.policy is None else evaluation.policy.number
    yield _gauge(
        "evaluation_policy_version", "Policy that is being evaluated; -1 when none is.", version
    )
    yield _gauge(
        "evaluation_pods", "Rollout pods that evaluate instead of training.", evaluation.pods
    )
    yield _gauge(
        "evaluation_error_problems",
        "Problems of open evaluations lost or doubled, recounted from the keys; above 0 is a bug "
        "or a tampered Redis.",
        evaluation.error,
    )
    ended = CounterMetricFamily(
        "dapod_buffer_evaluations",
        "Evaluations ended, by how: complete, or dropped (the row in evaluations.jsonl says why).",
        labels=["end"],
    )
    for end in ("complete", "dropped"):
        ended.add_metric([end], counts.totals.get(f"evaluations_{end}", 0))
    yield ended


def _counters(counts: Counts) -> Iterator[Metric]:
    submitted = CounterMetricFamily(
        "dapod_buffer_groups_submitted",
        "Groups submitted, by what they came to; uniform ones are trained only without dynamic "
        "sampling, others only when kept.",
        labels=["disposition"],
    )
    for disposition in Disposition:
        if disposition is Disposition.EVALUATED:
            continue  # not a group of training
        submitted.add_metric([disposition.value], counts.totals.get(disposition.value, 0))
    yield submitted
    for name, text in {
        "leases_granted": "Leases granted.",
        "leases_expired": "Leases that ran out: a rollout died, hung or lost its network.",
        "leases_returned": "Leases given back by rollouts that drained or failed.",
        "groups_given_up": "Prompts dropped as failed because lease after lease ended without a "
        "result: the rollouts' logs say why.",
        "resumes": "Times a trainer began again in this run: it crashed, was preempted or stopped.",
    }.items():
        yield _counter(name, text, counts.totals.get(name.removeprefix("groups_"), 0))
    stale = counts.totals.get("stale", 0)
    yield _counter(
        "groups_stale", "Groups handed out staler than algorithm.max_staleness: a bug.", stale
    )
